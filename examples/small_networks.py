"""Networks that train in seconds, for the pictures of docs/ that need no photograph.

A vision transformer finds a digit in a cluttered image, a recurrent network reads sentences, and a
perceptron reads the table of wines that comes with scikit-learn.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, PATCH = 24, 4
GOOD = ["wonderful", "lovely", "great", "brilliant", "charming"]
BAD = ["dreadful", "boring", "awful", "clumsy", "tiresome"]
NOUNS = ["film", "story", "music", "cast", "plot", "ending"]
LINKS = ["was", "seemed", "felt"]
STARTS = ("the", "this", "that")
PADDING = "."


@dataclass(frozen=True)
class Trained:
    """A file, the manifest to serve it with, and rows to show it with their labels."""

    path: Path
    manifest: dict[str, Any]
    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    names: list[list[str]]


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(self.first(x)).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.second(x))


class VisionTransformer(nn.Module):
    """A class token that reads patches of 4 by 4 pixels through two layers."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(1, (SIDE // PATCH) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens)[:, 0]))


class Reader(nn.Module):
    """A bidirectional GRU over embedded words, read by its largest values."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 16)
        self.recurrent = nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return self.head(states.amax(1))


def fit(
    net: nn.Module,
    batches: Callable[[np.random.Generator], tuple[Tensor, Tensor]],
    steps: int,
    rate: float = 2e-3,
) -> nn.Module:
    """Train on fresh batches with AdamW, the learning rate falling to zero."""
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        x, labels = batches(random)
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def cluttered(images: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Digits `(N, 1, 8, 8)` on four patches of images `(N, 1, 24, 24)`, among patches of noise."""
    made = np.zeros((len(images), 1, SIDE, SIDE), np.float32)
    for row, picture in enumerate(made[:, 0]):
        for top, left in PATCH * random.integers(0, SIDE // PATCH, (6, 2)):
            picture[top : top + PATCH, left : left + PATCH] = random.random((PATCH, PATCH))
        top, left = PATCH * random.integers(0, SIDE // PATCH - 1, 2)
        picture[top : top + 8, left : left + 8] = images[row, 0]
    return made


def vision_transformer(folder: Path, steps: int = 700) -> Trained:
    """The digit among clutter; rows are held-out digits."""
    from interpret_server.demo.digits import load_digits

    first, second, held_out = load_digits()
    images = np.concatenate([first.images, second.images])
    labels = np.concatenate([first.labels, second.labels])

    def batches(random: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = random.integers(0, len(images), 64)
        return torch.from_numpy(cluttered(images[rows], random)), torch.from_numpy(labels[rows])

    torch.manual_seed(0)
    net = fit(VisionTransformer(), batches, steps, 4e-3)
    inputs = cluttered(held_out.images, np.random.default_rng(1))
    path = folder / "vit.pt"
    _script(net, path)
    return Trained(path, {"shape": [1, SIDE, SIDE], "bounds": [0, 1]}, inputs, held_out.labels, [])


def sentence(random: np.random.Generator) -> tuple[list[str], int]:
    """Two clauses of which the one after "but" decides; "not" turns a word around."""

    def clause() -> tuple[list[str], bool]:
        good, negated = random.integers(0, 2, 2)
        words = [random.choice(STARTS), random.choice(NOUNS), random.choice(LINKS)]
        words += ["not"] if negated else []
        return [*words, random.choice(GOOD if good else BAD)], bool(good) != bool(negated)

    first, _ = clause()
    second, positive = clause()
    words = [str(word) for word in [*first, "but", *second]]
    return words + [PADDING] * (11 - len(words)), int(positive)


def reader(folder: Path, steps: int = 300) -> Trained:
    """Sentences that are friendly or not."""
    vocabulary = [PADDING, "but", "not", *STARTS, *NOUNS, *LINKS, *GOOD, *BAD]
    codes = {word: code for code, word in enumerate(vocabulary)}

    def batches(random: np.random.Generator) -> tuple[Tensor, Tensor]:
        found = [sentence(random) for _ in range(128)]
        tokens = torch.tensor([[codes[word] for word in words] for words, _ in found])
        return tokens, torch.tensor([label for _, label in found])

    torch.manual_seed(0)
    net = fit(Reader(len(vocabulary)), batches, steps, 1e-2)
    names = [
        ["the", "plot", "was", "not", "lovely", "but", "the", "cast", "was", "not", "dreadful"],
        ["the", "music", "felt", "not", "awful", "but", "this", "ending", "felt", "not", "great"],
    ]
    inputs = np.array([[codes[word] for word in words] for words in names])
    path = folder / "reader.pt"
    _script(net, path)
    manifest = {"shape": [11], "labels": ["unfriendly", "friendly"]}
    return Trained(path, manifest, inputs, np.array([1, 0]), names)


def wines(folder: Path, steps: int = 600) -> Trained:
    """Three cultivars told apart by 13 measurements; rows are wines held out."""
    from sklearn.datasets import load_wine

    table = load_wine()
    order = np.random.default_rng(0).permutation(len(table.target))
    values = table.data[order].astype(np.float32)
    labels = table.target[order].astype(np.int64)
    mean, deviation = values[30:].mean(0), values[30:].std(0)
    scaled = (values - mean) / deviation

    def batches(random: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = random.integers(30, len(scaled), 64)
        return torch.from_numpy(scaled[rows]), torch.from_numpy(labels[rows])

    torch.manual_seed(0)
    net = fit(nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3)), batches, steps)
    path = folder / "wines.pt"
    _script(net, path)
    bounds = [float(values.min()), float(values.max())]
    manifest = {
        "shape": [13],
        "bounds": bounds,
        "mean": mean.tolist(),
        "std": deviation.tolist(),
        "features": [name.replace("_", " ") for name in table.feature_names],
        "labels": [f"cultivar {number}" for number in range(3)],
    }
    return Trained(path, manifest, values[:30], labels[:30], [])


def digits(folder: Path) -> Trained:
    """The convolutional network of the demonstration; rows are held-out digits."""
    from interpret_server.demo.digits import load_digits, save_torchscript, train

    first, _, held_out = load_digits()
    path = folder / "digits.pt"
    save_torchscript(train(first, seed=0), path)
    manifest = {"shape": [1, 8, 8], "bounds": [0, 1]}
    return Trained(path, manifest, held_out.images, held_out.labels, [])


def denoiser(folder: Path, steps: int = 3000, noise: float = 0.3) -> Trained:
    """A perceptron that takes Gaussian noise out of digits; its values are a digit's pixels.

    Args:
        noise: standard deviation of the noise.
    """
    from interpret_server.demo.digits import load_digits

    first, second, held_out = load_digits()
    clean = torch.from_numpy(np.concatenate([first.images, second.images]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 512),
            nn.SiLU(),
            nn.Linear(512, 512),
            nn.SiLU(),
            nn.Linear(512, 64),
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for step in range(steps):
            rows = clean[torch.randint(len(clean), (128,))]
            found = net(rows + noise * torch.randn_like(rows))
            loss = F.mse_loss(found, rows.flatten(1))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
    path = folder / "denoiser.pt"
    _script(net.eval(), path)
    manifest = {"shape": [1, 8, 8], "bounds": [0, 1], "output": {"kind": "values"}}
    return Trained(path, manifest, held_out.images, held_out.labels, [])


def _script(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(net), str(path))


ALL: dict[str, Callable[[Path], Trained]] = {
    "vit": vision_transformer,
    "reader": reader,
    "wines": wines,
    "digits": digits,
}

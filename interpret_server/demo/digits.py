"""Small classifiers of scikit-learn's handwritten digits, trained in seconds and exported.

The 1,797 digits (Alpaydin & Kaynak, UCI 1998) are 8 by 8 pixels with 17 grey levels, scaled here
to [0, 1].
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS = 40
HELD_OUT = 297  # digits that no network is trained on


@dataclass(frozen=True)
class Digits:
    """Images `(N, 1, 8, 8)` float32 in [0, 1] and labels `(N,)` int64."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: slice) -> "Digits":
        """Some of the digits."""
        return Digits(self.images[rows], self.labels[rows])


def load_digits() -> tuple[Digits, Digits, Digits]:
    """Two disjoint training halves and the held-out digits, shuffled with a fixed seed."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = (bunch.images[order, None] / 16).astype(np.float32)
    everything = Digits(images, bunch.target[order].astype(np.int64))
    training, held_out = everything.take(slice(HELD_OUT, None)), everything.take(slice(HELD_OUT))
    half = len(training) // 2
    return training.take(slice(half)), training.take(slice(half, None)), held_out


class DigitNet(nn.Module):
    """Three convolutions and two linear layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * width * 16, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 1, 8, 8)`."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def train(data: Digits, seed: int, progress: Callable[[int], None] = lambda done: None) -> DigitNet:
    """Train on noisy, shifted digits for `EPOCHS` epochs; `progress` gets the epochs done."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DigitNet().train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
        images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        for epoch in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(labels)), 64):
                shift = tuple(int(v) for v in torch.randint(-1, 2, (2,)))
                x = torch.roll(images[rows], shift, (2, 3))
                x = (x + 0.15 * torch.randn_like(x)).clamp(0, 1)
                loss = F.cross_entropy(net(x), labels[rows], label_smoothing=0.02)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            progress(epoch + 1)
    return net.eval()


def accuracy(net: nn.Module, data: Digits) -> float:
    """Share of the digits that the network labels right."""
    with torch.no_grad():
        predicted = net(torch.from_numpy(data.images)).argmax(1).numpy()
    return float((predicted == data.labels).mean())


def save_torchscript(net: nn.Module, path: Path) -> None:
    """Write a scripted archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(net), str(path))


def save_onnx(net: nn.Module, path: Path) -> None:
    """Write an ONNX file with a free batch size."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net,
                (torch.zeros(2, 1, 8, 8),),
                str(path),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
                dynamo=True,
            )
    finally:
        logger.setLevel(level)

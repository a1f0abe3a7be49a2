"""Small classifiers for torch.export, written to files, and what is measured of them."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from interpret_server.models.lowered import Lowered

CLASSES = 5


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.relu(self.drop(self.relu(self.bn(self.conv(x)))) + x)


class Residual(nn.Module):
    """In-place and reused rectifiers, batch norm, dropout, strided pooling."""

    layer, smooth = "layer1.0.relu:1", False

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(6), Block(6))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.avgpool(self.layer1(self.pool(self.stem(x))))
        return self.fc(x.view(x.size(0), -1))

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randn(rows, 3, 8, 8),)


class Dense(nn.Module):
    """Concatenation, depthwise convolution, squeeze and excitation, channel shuffle."""

    layer, smooth = "gate", False

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(7, 9, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.act = nn.ReLU6()
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.relu = nn.ReLU()
        self.excite = nn.Conv2d(4, 16, 1)
        self.gate = nn.Sigmoid()
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = torch.cat([x, self.relu(self.a(x))], 1)
        x = torch.cat([x, self.relu(self.b(x))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.act(self.depthwise(x) * 3)
        gate = self.gate(self.excite(self.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head((x * gate).mean((2, 3)))

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randn(rows, 3, 6, 6),)


class Vit(nn.Module):
    """Patches, class token, learnt positions, attention of `nn.MultiheadAttention`, GELU."""

    layer, smooth = "mlp.1", True

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        n = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.positions
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x))[:, 0])

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randn(rows, 3, 8, 8),)


class Recurrent(nn.Module):
    """A bidirectional LSTM and a GRU over tokens."""

    layer, smooth = "act", True

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 7)
        self.act = nn.Tanh()
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, tokens):
        x, _ = self.lstm(self.embedding(tokens))
        x, _ = self.gru(x.transpose(0, 1))
        return self.fc(self.act(x[-1]))

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randint(0, 20, (rows, 3)),)


class Transformer(nn.Module):
    """Tokens and their mask, positions by index, an encoder layer, a masked mean."""

    layer, smooth = "encoder.norm1", True

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.places = nn.Embedding(6, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens, mask):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        with torch.no_grad():
            ignored = mask == 0
        x = self.encoder(x, src_key_padding_mask=ignored)
        weight = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1))

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        mask = (torch.arange(6) < torch.randint(2, 7, (rows, 1))).long()
        return torch.randint(0, 20, (rows, 6)), mask


class Audio(nn.Module):
    """One-dimensional convolutions, group norm, leaky and parametric rectifiers."""

    layer, smooth = "features.1", False

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 6, 5, stride=2),
            nn.GroupNorm(2, 6),
            nn.LeakyReLU(0.2),
            nn.Conv1d(6, 6, 3, padding=2, dilation=2, groups=3),
            nn.PReLU(6),
            nn.AvgPool1d(2),
        )
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.features(x).amax(-1))

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randn(rows, 1, 40),)


class Table(nn.Module):
    """Batch norm over features, several activations, a softmax at the end."""

    layer, smooth = "net.2", False

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 9),
            nn.BatchNorm1d(9),
            nn.ReLU(),
            nn.Linear(9, 9),
            nn.Hardswish(),
            nn.Linear(9, CLASSES),
            nn.Softmax(-1),
        )

    def forward(self, x):
        return self.net(x)

    @staticmethod
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randn(rows, 6),)


NETWORKS: dict[str, Any] = {
    net.__name__.lower(): net
    for net in (Residual, Dense, Vit, Recurrent, Transformer, Audio, Table)
}


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with weights and statistics as after training, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = NETWORKS[name]().train()
        net(*NETWORKS[name].inputs(16))
    return net.to(dtype).eval()


def inputs(name: str, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(rows)
        values = NETWORKS[name].inputs(rows)
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in values)


def save(
    path: Path,
    net: nn.Module,
    example: tuple[Any, ...],
    *,
    dynamic: Any = None,
    decomposed: bool = False,
    strict: bool = False,
) -> Path:
    """Export a network to a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, example, dynamic_shapes=dynamic, strict=strict)
        if decomposed:
            program = program.run_decompositions()
        torch.export.save(program, path)
    return path


def free_rows(example: tuple[Any, ...]) -> Any:
    """Dynamic shapes with a free batch."""
    return pytree.tree_map(lambda _: {0: torch.export.Dim.DYNAMIC}, tuple(example))


class _Tapped(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, name: str) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.name, self.value = name, torch.empty(0)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name == self.name:  # tokens carry no gradient, so one begins here
            value = self.value = value if value.requires_grad else value.requires_grad_()
        return value


def tapped(lowered: Lowered, values: tuple[Tensor, ...], layer: str) -> tuple[Any, Tensor]:
    """The outputs of a graph and the value of one of its layers."""
    interpreter = _Tapped(lowered.graph, lowered.layers[layer])
    return interpreter.run(*values), interpreter.value


def tapped_eager(net: nn.Module, values: tuple[Tensor, ...], layer: str) -> tuple[Any, Tensor]:
    """The outputs of a module and what call number `:i` of one of its parts gave."""
    path, _, call = layer.partition(":")
    seen: list[Tensor] = []
    handle = net.get_submodule(path).register_forward_hook(
        lambda module, inside, outside: seen.append(outside)
    )
    outputs = net(*values)
    handle.remove()
    return outputs, seen[int(call or 0)]


def relative(found: Tensor, reference: Tensor) -> float:
    """The largest difference over the largest value."""
    found, reference = found.detach(), reference.detach()
    return float((found - reference).abs().max() / reference.abs().max().clamp(min=1e-30))


# Files changed by hand


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def rewrite(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def edited(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a file with its program's document changed."""
    contents = records(source)
    name = next(name for name in contents if name.endswith("models/model.json"))
    document = json.loads(contents[name])
    change(document)
    contents[name] = json.dumps(document).encode()
    return rewrite(target, contents)

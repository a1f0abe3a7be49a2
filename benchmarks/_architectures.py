"""Networks of the usual families, built from code with random weights, for the benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 100


def _conv(
    inside: int,
    outside: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm and, unless None, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


class Fire(nn.Module):
    """Squeeze, then expand by 1x1 and 3x3 (Iandola et al. 2016)."""

    def __init__(self, inside: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeeze, 1)
        self.one = nn.Conv2d(squeeze, expand, 1)
        self.three = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 2 * expand, H, W)`."""
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


def squeezenet(classes: int = 1000) -> nn.Module:
    """SqueezeNet 1.1."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Residual(nn.Module):
    """`relu(branch(x) + shortcut(x))` (He et al. 2016)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.relu = branch, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The shape of the branch's output."""
        result: Tensor = self.relu(self.branch(x) + self.shortcut(x))
        return result


def resnet20() -> nn.Module:
    """ResNet-20 for 32x32 images."""
    layers: list[nn.Module] = [_conv(3, 16, 3)]
    width = 16
    for outside in (16, 32, 64):
        for block in range(3):
            stride = 2 if outside != 16 and block == 0 else 1
            branch = nn.Sequential(
                _conv(width, outside, 3, stride), _conv(outside, outside, 3, activation=None)
            )
            same = width == outside
            shortcut = nn.Identity() if same else _conv(width, outside, 1, stride, activation=None)
            layers.append(Residual(branch, shortcut))
            width = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def resnet50(depths: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    """ResNet-50: bottlenecks, stride in the 3x3 convolution."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, depth in enumerate(depths):
        inner, outside = 64 << stage, 256 << stage
        for block in range(depth):
            stride = 2 if stage and block == 0 else 1
            branch = nn.Sequential(
                _conv(width, inner, 1),
                _conv(inner, inner, 3, stride),
                _conv(inner, outside, 1, activation=None),
            )
            same = width == outside
            shortcut = nn.Identity() if same else _conv(width, outside, 1, stride, activation=None)
            layers.append(Residual(branch, shortcut))
            width = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class Inverted(nn.Module):
    """Inverted residual with a depthwise convolution (Sandler et al. 2018)."""

    def __init__(self, inside: int, outside: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inside * factor
        expand = [] if factor == 1 else [_conv(inside, inner, 1, activation=nn.ReLU6)]
        self.branch = nn.Sequential(
            *expand,
            _conv(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6),
            _conv(inner, outside, 1, activation=None),
        )
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """`(N, outside, H / stride, W / stride)`."""
        y: Tensor = self.branch(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """MobileNetV2."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, activation=nn.ReLU6)]
    width = 32
    for factor, outside, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            layers.append(Inverted(width, outside, stride if block == 0 else 1, factor))
            width = outside
    layers.append(_conv(width, 1280, 1, activation=nn.ReLU6))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, CLASSES)
    )


class Dense(nn.Module):
    """`cat(x, conv(relu(norm(conv(relu(norm(x)))))))` (Huang et al. 2017)."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inside + growth, H, W)`."""
        return torch.cat([x, self.branch(x)], 1)


def densenet(depths: tuple[int, ...] = (4, 6, 8), growth: int = 16) -> nn.Module:
    """DenseNet-BC with few layers."""
    width = 2 * growth
    layers: list[nn.Module] = [_conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            layers.append(Dense(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if stage + 1 < len(depths):
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al. 2015)."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _conv(inside, width, 1),
                nn.Sequential(_conv(inside, width, 1), _conv(width, 2 * width, 3)),
                nn.Sequential(_conv(inside, width // 2, 1), _conv(width // 2, width, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(inside, width, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 5 * width, H, W)`."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception() -> nn.Module:
    """GoogLeNet with few blocks."""
    return nn.Sequential(
        _conv(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1), _conv(32, 64, 3), nn.MaxPool2d(3, 2, 1),
        Inception(64, 32), Inception(160, 48), nn.MaxPool2d(3, 2, 1), Inception(240, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, CLASSES),
    )  # fmt: skip


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, layer norm over channels, two linear layers (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, width, H, W)`."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.outer(F.gelu(self.inner(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """ConvNeXt with few blocks."""
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, 4)]
    for stage, depth in enumerate((2, 2, 4)):
        layers += [ConvNextBlock(48 << stage) for _ in range(depth)]
        if stage < 2:
            layers.append(nn.Conv2d(48 << stage, 96 << stage, 2, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, CLASSES))


class Attention(nn.Module):
    """Multi-head self-attention from its parts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, L, width)`."""
        rows, length, width = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        result: Tensor = self.out(y.reshape(rows, length, width))
        return result


class TransformerBlock(nn.Module):
    """Pre-norm attention and multi-layer perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, L, width)`."""
        x = x + self.attention(x)
        result: Tensor = x + self.perceptron(x)
        return result


class VisionTransformer(nn.Module):
    """Patches, a class token and learned positions (Dosovitskiy et al. 2021)."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, CLASSES)`."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        result: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return result


class MixerBlock(nn.Module):
    """Perceptrons over patches, then over channels (Tolstikhin et al. 2021)."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens = nn.Sequential(nn.Linear(patches, 64), nn.GELU(), nn.Linear(64, patches))
        self.channels = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, patches, width)`."""
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.channels(self.norms[1](x))
        return result


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self, size: int, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(
            *(MixerBlock((size // patch) ** 2, width) for _ in range(depth))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, CLASSES)`."""
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        result: Tensor = self.head(self.norm(x).mean(1))
        return result


class Recurrent(nn.Module):
    """A bidirectional LSTM over a series, read at its end."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inside, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, CLASSES)` of a series `(N, L, inside)`."""
        result: Tensor = self.head(self.lstm(x)[0][:, -1])
        return result


def audio() -> nn.Module:
    """A 1-D convolutional network on raw samples (M5, Dai et al. 2017)."""
    layers: list[nn.Module] = []
    for inside, outside, size, stride in ((1, 64, 80, 4), (64, 64, 3, 1), (64, 128, 3, 1)):
        layers += [
            nn.Conv1d(inside, outside, size, stride, size // 2),
            nn.BatchNorm1d(outside), nn.ReLU(), nn.MaxPool1d(4),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, CLASSES))


def perceptron() -> nn.Module:
    """A tabular network with batch norm."""
    return nn.Sequential(
        nn.Linear(32, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


class Architecture(NamedTuple):
    """A way to build a network, and the shape of its rows."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


ARCHITECTURES: dict[str, Architecture] = {
    "squeezenet": Architecture(squeezenet, (3, 224, 224)),
    "resnet20": Architecture(resnet20, (3, 32, 32)),
    "resnet50": Architecture(resnet50, (3, 128, 128)),
    "mobilenet_v2": Architecture(mobilenet, (3, 160, 160)),
    "densenet": Architecture(densenet, (3, 96, 96)),
    "inception": Architecture(inception, (3, 128, 128)),
    "convnext": Architecture(convnext, (3, 96, 96)),
    "vit": Architecture(lambda: VisionTransformer(96, 8, 192, 6, 3), (3, 96, 96)),
    "mixer": Architecture(lambda: Mixer(96, 8, 192, 6), (3, 96, 96)),
    "lstm": Architecture(lambda: Recurrent(40, 96), (50, 40)),
    "audio_cnn": Architecture(audio, (1, 8000)),
    "mlp": Architecture(perceptron, (32,)),
}


@dataclass(frozen=True)
class Built:
    """A network in its inference form, with one row's shape."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def build(name: str, seed: int = 0) -> Built:
    """A network with random weights and batch norm statistics of its own activations.

    Args:
        name: a key of `ARCHITECTURES`.
        seed: of the weights.
    """
    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = architecture.build().train()
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # the mean over all batches
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.0, 0.2)
        with torch.no_grad():
            module(torch.rand(16, *architecture.shape))
    return Built(name, module.eval().requires_grad_(False), architecture.shape)

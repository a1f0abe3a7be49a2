"""Small classifiers of the usual architectures, with twins for Captum, and ways to compare."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpret_server.models.lowered import Lowered
from interpret_server.models.torchscript import lower, open_archive

CLASSES = 7


class Cnn(nn.Module):
    def __init__(self, relu: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.relu1 = relu()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding="same")
        self.relu2 = relu()
        self.fc1 = nn.Linear(8 * 4 * 4, 16)
        self.relu3 = relu()
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        x = torch.flatten(self.relu2(self.conv2(x)), 1)
        return self.fc2(self.relu3(self.fc1(x)))


class FunctionalCnn(Cnn):
    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = torch.flatten(torch.relu(self.conv2(x)), 1)
        return self.fc2(self.fc1(x).relu())


class InPlaceCnn(Cnn):
    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        x = self.conv2(self.pool(x))
        x.relu_()
        return self.fc2(F.relu_(self.fc1(torch.flatten(x, 1))))


class ReusedCnn(Cnn):
    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        x = torch.flatten(self.relu1(self.conv2(x)), 1)
        return self.fc2(self.relu1(self.fc1(x)))


class Relu6Twin(nn.ReLU):
    """A ReLU6 that Captum takes for a rectifier."""

    def forward(self, x):
        return F.relu6(x)


class Block(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int, relus: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def last(self, x):
        return self.relu(x)

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.last(out)


class TwinBlock(Block):
    """Separate ReLUs and no operation in place, for Captum."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.relu2 = nn.ReLU()

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    def __init__(self, block: type[Block] = Block, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace)
        self.layer1 = nn.Sequential(block(8, 8, 1, 1, inplace), block(8, 8, 1, 1, inplace))
        self.layer2 = nn.Sequential(block(8, 12, 2, 1, inplace))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        x = self.avgpool(x)
        return self.fc(self.dropout(x.view(x.size(0), -1)))


class Excite(nn.Module):
    def __init__(self, relu: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.relu = relu()
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.act = relu()
        self.excite = nn.Conv2d(2, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.relu(self.depthwise(self.stem(x)))
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = torch.sigmoid(self.excite(self.act(self.squeeze(scale))))
        x = self.norm(x * scale)
        return self.fc(x.mean([2, 3]))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.c = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x), self.c(self.pool(x))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h * w)
        return self.fc(x.mean(-1))


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(self.relu(self.norm(torch.cat(features, 1))))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(3 + 4 * index) for index in range(3)])
        self.fc = nn.Linear(15, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        x = torch.cat(features, 1)
        return self.fc(x.amax((2, 3)))


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(2, 6, 5, stride=2),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.ConvTranspose1d(6, 4, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(3),
        )
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.body(x)
        return self.fc(x.reshape(x.shape[0], x.shape[1] * x.shape[2]))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 9), nn.ReLU(), nn.LayerNorm(9), nn.Linear(9, 9), nn.ReLU()
        )
        self.weight = nn.Parameter(torch.randn(9, CLASSES))
        self.bias = nn.Parameter(torch.randn(CLASSES))

    def forward(self, x):
        return torch.addmm(self.bias, self.layers(x), self.weight)


class Loops(nn.Module):
    """Conditions and loops on shapes and constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(3, CLASSES)
        self.repeats = 2

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.size(1) != 3:
            raise ValueError("images expected")
        for _ in range(self.repeats):
            x = self.conv(x)
        x = self.relu1(x)
        while x.size(2) > 2:
            x = F.max_pool2d(x, 2)
        parts = x.chunk(x.size(2), 2)
        total = parts[0]
        for part in parts[1:]:
            total = total + self.relu2(part) if self.training else total + part
        return self.fc(self.relu2(total).flatten(1).view(x.size(0), 3, -1).sum(2))


@dataclass(frozen=True)
class Case:
    """A network, and the one that Captum explains in its stead."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 8, 8)
    twin: Callable[[], nn.Module] | None = None
    batch_norm: bool = False
    scale: float = 1.0  # of the inputs


CASES = {
    "module": Case(Cnn),
    "functional": Case(FunctionalCnn, twin=Cnn),
    "in_place": Case(InPlaceCnn, twin=Cnn),
    "in_place_module": Case(partial(Cnn, partial(nn.ReLU, inplace=True)), twin=Cnn),
    "reused": Case(ReusedCnn, twin=Cnn),
    "relu6": Case(partial(Cnn, nn.ReLU6), scale=30, twin=partial(Cnn, Relu6Twin)),
    "residual": Case(Residual, twin=partial(Residual, TwinBlock, False), batch_norm=True),
    "excite": Case(partial(Excite, partial(nn.ReLU, inplace=True)), twin=partial(Excite, nn.ReLU)),
    "inception": Case(Inception),
    "dense": Case(Dense, batch_norm=True),
    "conv1d": Case(Conv1d, shape=(2, 24), batch_norm=True),
    "mlp": Case(Mlp, shape=(5,)),
    "loops": Case(Loops),
}


X = torch.linspace(-2, 2, 2 * 6 * 8, dtype=torch.float64).sin().reshape(2, 6, 8)
IMAGES = torch.linspace(-9, 9, 2 * 3 * 8 * 8, dtype=torch.float64).sin().reshape(2, 3, 8, 8)


def script(module: nn.Module, path: Path) -> torch.jit.ScriptModule:
    torch.jit.save(torch.jit.script(module.eval()), path)
    return open_archive(path)


def trace(module: nn.Module, path: Path, *examples: Tensor) -> torch.jit.ScriptModule:
    torch.jit.save(torch.jit.trace(module, examples, check_trace=False), path)
    return open_archive(path)


def batches(x: Tensor) -> list[Tensor]:
    return [x[:1], x, torch.cat([x, x.flip(0), x[:1]])]


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def agrees(archive: torch.jit.ScriptModule, x: Tensor) -> Lowered:
    """Lowered from two rows, the graph equals the archive on 1, 2 and 5."""
    result = lower(archive, [x])
    for batch in batches(x):
        kept = batch.clone()
        same(result.graph(batch), archive(batch.clone()))
        assert torch.equal(batch, kept), "the caller's tensor was changed"
    return result


def kinds(result: Lowered) -> list[str]:
    nodes = {node.name: node for node in result.graph.graph.nodes}
    return [nodes[name].meta["kind"] for name in result.layers.values()]

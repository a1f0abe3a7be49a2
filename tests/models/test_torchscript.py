"""A zoo of small classifiers, each scripted, traced and frozen, against the eager module."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn

from interpret_server.models.lowered import Lowered
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.torchscript import ArchiveBody, lower, open_archive

FORMS = ("script", "trace", "freeze_script", "freeze_trace")
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
ALL = pytest.mark.parametrize("name", CASES)
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


def randomise_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)


@cache
def eager(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    module = CASES[name].build().to(dtype)
    randomise_statistics(module)
    return module.eval().requires_grad_(False)


@cache
def twin(name: str, dtype: torch.dtype) -> nn.Module:
    """What Captum can explain: the same function with one `nn.ReLU` per call."""
    build = CASES[name].twin
    if build is None:
        return eager(name, dtype)
    module = build().to(dtype).eval()
    module.load_state_dict(eager(name, dtype).state_dict())
    return module.requires_grad_(False)


def inputs(name: str, dtype: torch.dtype, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, *CASES[name].shape, generator=generator) * CASES[name].scale
    return x.to(dtype)


def save(module: nn.Module, form: str, example: Tensor) -> bytes:
    tracing = form.endswith("trace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        archive = torch.jit.trace(module, example) if tracing else torch.jit.script(module)
    if form.startswith("freeze"):
        archive = torch.jit.freeze(archive.eval())
    buffer = io.BytesIO()
    torch.jit.save(archive, buffer)
    return buffer.getvalue()


@cache
def saved(name: str, form: str, dtype: torch.dtype) -> bytes:
    return save(eager(name, dtype), form, inputs(name, dtype, 3))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., torch.jit.ScriptModule]:
    def opened(name: str, form: str, dtype: torch.dtype) -> torch.jit.ScriptModule:
        path = tmp_path / "model.pt"
        path.write_bytes(saved(name, form, dtype))
        return open_archive(path)

    return opened


def lowered(archive: torch.jit.ScriptModule, name: str, dtype: torch.dtype) -> Lowered:
    return lower(archive, [inputs(name, dtype, 2)])


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


def explain(forward: Callable[[Tensor], Tensor], x: Tensor, rule: ReluRule) -> Tensor:
    leaf = x.clone().requires_grad_()
    total = forward(leaf).gather(1, classes(x)).sum()
    with relu_rule(rule):
        (gradient,) = torch.autograd.grad(total, leaf)
    return gradient


def classes(x: Tensor) -> Tensor:
    return (torch.arange(len(x)) % CLASSES)[:, None]


def captum(method: type, module: nn.Module, x: Tensor) -> Tensor:
    with pytest.warns(UserWarning, match="hooks"):
        explained: Tensor = method(module).attribute(
            x.clone().requires_grad_(), target=classes(x)[:, 0]
        )
    return explained.detach()


METHODS = {ReluRule.GUIDED: GuidedBackprop, ReluRule.DECONVNET: Deconvolution}


@ALL
@EVERY_FORM
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_outputs_and_gradients_equal_the_eager_module(load, name, form, dtype, tolerance):
    graph = lowered(load(name, form, dtype), name, dtype).graph
    for rows in (1, 2, 5):
        x = inputs(name, dtype, rows)
        assert error(graph(x), eager(name, dtype)(x)) <= tolerance
        expected = explain(twin(name, dtype), x, ReluRule.PLAIN)
        assert error(explain(graph, x, ReluRule.PLAIN), expected) <= tolerance


@ALL
@EVERY_FORM
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_rectifier_rules_equal_captum_on_every_call(load, name, form, dtype):
    if dtype is torch.float32 and CASES[name].batch_norm:
        pytest.skip("float32 noise of batch norm")
    archive = load(name, form, dtype)
    graph, body = lowered(archive, name, dtype).graph, ArchiveBody(archive)
    x = inputs(name, dtype, 3)
    for rule, method in METHODS.items():
        expected = captum(method, twin(name, dtype), x)
        for forward in (graph, body):
            for call in range(10):
                found = explain(forward, x, rule)
                assert error(found, expected) <= 1e-6, f"call {call} of {forward}"
                if call in (2, 5):
                    with torch.no_grad():
                        archive(x)
                        forward(x)
        if name != "relu6":  # Captum's hooks know no rectifier but nn.ReLU
            assert error(captum(method, graph, x), expected) <= 1e-6


@ALL
@EVERY_FORM
def test_every_tensor_has_a_kind_and_every_layer_a_node(load, name, form):
    result = lowered(load(name, form, torch.float32), name, torch.float32)
    result.graph.graph.lint()
    assert not result.graph.training
    nodes = {node.name: node for node in result.graph.graph.nodes}
    assert set(result.layers.values()) <= set(nodes)
    targets = [node.target for node in nodes.values() if node.op == "call_module"]
    assert len(targets) == len(set(targets)), "one module per call"
    values = {}
    interpreter = torch.fx.Interpreter(result.graph)
    interpreter.run_node = lambda node: values.setdefault(  # type: ignore[method-assign]
        node.name, torch.fx.Interpreter.run_node(interpreter, node)
    )
    interpreter.run(inputs(name, torch.float32, 2))
    for node_name, value in values.items():
        assert isinstance(value, Tensor) == ("kind" in nodes[node_name].meta) or node_name in (
            "output",
        ), node_name


def test_a_module_relu_is_a_module_of_the_graph_under_its_own_name(load):
    graph = lowered(load("module", "script", torch.float32), "module", torch.float32).graph
    assert isinstance(graph.get_submodule("relu2"), nn.ReLU)
    weight = graph.get_submodule("conv1").weight
    assert not weight.requires_grad
    assert torch.equal(weight, eager("module", torch.float32).conv1.weight)


def test_weights_are_shared_with_the_archive(load):
    archive = load("module", "script", torch.float32)
    graph = lowered(archive, "module", torch.float32).graph
    assert graph.get_submodule("conv1").weight.data_ptr() == archive.conv1.weight.data_ptr()


@pytest.mark.parametrize("form", ["script", "trace"])
def test_layers_are_named_after_modules(load, form):
    layers = lowered(load("residual", form, torch.float32), "residual", torch.float32).layers
    assert list(layers)[:14] == [
        "conv1",
        "bn1",
        "relu",
        "layer1.0.conv1",
        "layer1.0.bn1",
        "layer1.0.relu",
        "layer1.0.conv2",
        "layer1.0.bn2",
        "layer1.0.add",
        "layer1.0.relu:1",
        "layer1.0",
        "layer1.1.conv1",
        "layer1.1.bn1",
        "layer1.1.relu",
    ]
    assert layers["layer1.0"] == layers["layer1.0.relu:1"]
    assert layers["layer2"] == layers["layer2.0"] == layers["layer2.0.relu:1"]
    assert {"layer2.0.downsample.0", "avgpool", "dropout", "view", "fc"} <= set(layers)


def test_operators_outside_modules_and_repeated_calls_are_numbered(load):
    layers = lowered(load("functional", "script", torch.float32), "functional", torch.float32)
    assert list(layers.layers) == [
        "conv1",
        "relu",
        "pool",
        "conv2",
        "relu:1",
        "flatten",
        "fc1",
        "relu:2",
        "fc2",
    ]
    layers = lowered(load("reused", "trace", torch.float32), "reused", torch.float32)
    assert [name for name in layers.layers if "relu" in name] == ["relu1", "relu1:1", "relu1:2"]


def test_frozen_archives_are_named_after_operators(load):
    layers = lowered(load("module", "freeze_script", torch.float32), "module", torch.float32)
    assert list(layers.layers)[:3] == ["conv2d", "relu", "max_pool2d"]

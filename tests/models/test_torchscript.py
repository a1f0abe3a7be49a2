"""A zoo of small classifiers, each scripted, traced and frozen, against the eager module."""

import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from captum.attr import Deconvolution, DeepLift, GuidedBackprop, LayerGradCam
from torch import Tensor, nn
from torchscript_zoo import CASES, CLASSES

from interpret_server.models.lowered import Lowered
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.torchscript import ArchiveBody, lower, open_archive

FORMS = ("script", "trace", "freeze_script", "freeze_trace")


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
    module = CASES[name].build()
    randomise_statistics(module)
    return module.to(dtype).eval().requires_grad_(False)


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
def test_rectifier_rules_equal_captum_on_every_call(load, name, form):
    dtype = torch.float32 if form == "freeze_script" else torch.float64
    archive = load(name, form, dtype)
    graph, body = lowered(archive, name, dtype).graph, ArchiveBody(archive)
    x = inputs(name, dtype, 3)
    for rule, method in METHODS.items():
        expected = captum(method, twin(name, dtype), x)
        tolerance = 1e-6
        if dtype is torch.float32 and CASES[name].batch_norm:
            exact = captum(method, twin(name, torch.float64), x.double())
            tolerance = max(1e-5, 4 * error(expected.double(), exact))
        for forward in (graph, body):
            for call in range(4):
                found = explain(forward, x, rule)
                assert error(found, expected) <= tolerance, f"call {call} of {forward}"
                if call == 2:
                    with torch.no_grad():
                        archive(x)
                        forward(x)
        if name != "relu6":  # Captum's hooks know no rectifier but nn.ReLU
            assert error(captum(method, graph, x), expected) <= tolerance


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_captums_other_hooks_see_the_same_network(load, form):
    graph = lowered(load("functional", form, torch.float64), "functional", torch.float64)
    module, x = twin("functional", torch.float64), inputs("functional", torch.float64, 3)
    target = classes(x)[:, 0]
    found, expected = (DeepLift(net).attribute(x, target=target) for net in (graph.graph, module))
    assert error(found.detach(), expected.detach()) <= 1e-6
    nodes = [n for n in graph.graph.graph.nodes if n.meta.get("kind") == "conv2d"]
    conv2 = graph.graph.get_submodule(str(nodes[1].target))
    found = LayerGradCam(graph.graph, conv2).attribute(x, target=target)
    expected = LayerGradCam(module, module.conv2).attribute(x, target=target)
    assert error(found.detach(), expected.detach()) <= 1e-6


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


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(5, 4)
        self.code = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        self.meta = nn.ReLU()

    def forward(self, x):
        return self.meta(self.code(self.graph(x)))


def test_a_module_may_have_a_name_that_graphs_use_themselves(tmp_path):
    module, x = Autoencoder(), torch.randn(2, 5)
    torch.jit.save(torch.jit.script(module), tmp_path / "model.pt")
    result = lower(open_archive(tmp_path / "model.pt"), [x])
    assert list(result.layers) == ["graph", "code.0", "code.1", "code", "meta"]
    assert torch.equal(result.graph(x), module(x))


def test_an_inlined_archive_is_named_after_its_weights(tmp_path):
    module = eager("module", torch.float32)
    archive = torch.jit.script(module)
    inlined = torch._C._freeze_module(archive._c, [], True, True)  # keeps the parameters
    torch.jit.save(
        torch.jit.RecursiveScriptModule._construct(inlined, lambda _: None), tmp_path / "m.pt"
    )
    layers = lower(open_archive(tmp_path / "m.pt"), [inputs("module", torch.float32, 2)]).layers
    assert list(layers)[:4] == ["conv1", "relu", "max_pool2d", "conv2"]

"""Layers of exported files bear the names of the modules that they came from."""

import contextlib
import io
import tempfile
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from interpret_server.models.lowered import Lowered
from interpret_server.models.onnx import import_model


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        return self.relu(x + self.conv_1(y) + y)


class Network(nn.Module):
    """Repeated modules, containers in containers, operators of no module, a module of several."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block(4), nn.Sequential(Block(4), nn.Tanh()))
        self.act = nn.ReLU()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.act(self.stem(x)) - 0.1)
        x = self.layer1(x).flatten(2).transpose(1, 2)
        x = self.norm(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = torch.sigmoid(block(x))
        return self.head(x.mean(1))


def exported(network: nn.Module, path: Path, *, dynamo: bool, fixed: bool = True) -> Path:
    options: dict[str, object] = {"verbose": False, "external_data": False} if dynamo else {}
    if dynamo and not fixed:
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    elif not fixed:
        options["dynamic_axes"] = {"x": {0: "n"}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1 if fixed else 2, 3, 9, 9),),
            path,
            dynamo=dynamo,
            input_names=["x"],
            **options,
        )
    return path


@cache
def whole(dynamo: bool, fixed: bool) -> tuple[nn.Module, Lowered]:
    torch.manual_seed(0)
    network = Network().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = exported(network, Path(folder, "net.onnx"), dynamo=dynamo, fixed=fixed)
        return network, import_model(path)


def module_values(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each call of each module gives: `relu`, then `relu:1`."""
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def note(name: str) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            value = output[0] if isinstance(output, tuple) else output
            found[f"{name}:{calls[name]}" if calls[name] else name] = value
            calls[name] += 1

        modules[name].register_forward_hook(hook)

    modules = dict(network.named_modules())
    for name in filter(None, modules):
        note(name)
    with torch.no_grad():
        network(x)
    return found


def layer_values(lowered: Lowered, x: Tensor) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}

    class Reader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Reader(lowered.graph).run(x)
    return {name: values[node] for name, node in lowered.layers.items()}


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "open"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_every_module_of_the_code_is_a_layer_with_its_value(dynamo, fixed):
    network, lowered = whole(dynamo, fixed)
    x = torch.randn(2, 3, 9, 9)
    ours, expected = layer_values(lowered, x), module_values(network, x)
    assert {"act:1", "layer1.0.relu:1", "layer1.1.0.conv_1", "blocks.1", "layer1"} <= set(expected)
    for name, value in expected.items():
        if name != "attention.out_proj":  # which the module does not call
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)
    own = set(ours) - set(expected)
    assert {"layer1.0.add", "layer1.0.add:1", "sub", "sigmoid", "sigmoid:1", "mean"} <= own
    assert not any("/" in name or name.startswith("node_") for name in ours)


def test_both_exporters_name_layers_alike():
    first, second = (
        [name for name in whole(dynamo, True)[1].layers if not name.startswith("attention.")]
        for dynamo in (True, False)
    )
    alike = [name for name in first if name in second]
    assert alike == [name for name in second if name in first]
    assert len(alike) >= 25


def test_normalisation_folded_into_a_convolution_has_the_name_of_the_normalisation(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    lowered = import_model(exported(network, tmp_path / "net.onnx", dynamo=True))
    assert list(lowered.layers) == ["1", "2"]
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(layer_values(lowered, x)["1"], network[:2](x))


def named(*nodes: tuple[str, str], weights: tuple[str, ...] = ()) -> list[str]:
    """Layers of a chain of nodes, each an operator with a name."""
    chain = [
        helper.make_node(operator, [f"v{i}"], [f"v{i + 1}"], name)
        for i, (operator, name) in enumerate(nodes)
    ]
    chain[0].input[0] = "x"
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])
        for name in ("x", f"v{len(chain)}")
    ]
    stored = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in weights]
    graph = helper.make_graph(chain, "graph", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(named.folder, "model.onnx")  # type: ignore[attr-defined]
    onnx.save(model, path)
    return list(import_model(path).layers)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    named.folder = tmp_path  # type: ignore[attr-defined]


def test_names_of_other_exporters_stay():
    assert named(("Relu", "Relu_0"), ("Tanh", "model/dense/Tanh")) == ["Relu_0", "model/dense/Tanh"]
    assert named(("Relu", ""), ("Tanh", "")) == ["v1", "v2"]
    assert named(("Relu", "/a/Relu"), ("Tanh", "mine")) == ["a", "mine"]
    assert named(("Relu", "/a/Tanh"), ("Tanh", "/b//Tanh")) == ["/a/Tanh", "/b//Tanh"]


def test_a_number_at_the_end_of_a_name_is_a_call_only_where_it_can_be():
    assert named(("Relu", "/act/Relu"), ("Relu", "/act_1/Relu")) == ["act", "act:1"]
    assert named(("Relu", "/act_1/Relu"), ("Relu", "/act_2/Relu")) == ["act_1", "act_2"]
    assert named(("Relu", "/act/Relu"), ("Relu", "/act_2/Relu")) == ["act", "act_2"]
    told = named(("Relu", "/act/Relu"), ("Relu", "/act_1/Relu"), weights=("act_1.weight",))
    assert told == ["act", "act_1"]


def test_equal_names_of_different_layers_are_told_apart():
    assert named(("Relu", "/Relu"), ("Relu", "/relu/Relu"), ("Tanh", "relu:1")) == [
        "relu",
        "relu:1",
        "relu:1:1",
    ]


@pytest.mark.parametrize(
    ("scopes", "classes"),
    [
        ("['', 'a', 'relu']", "['Net', 'aten.relu.default']"),
        ("[", "["),
        ("['', 'a', 3]", "['Net', 'torch.nn.modules.activation.ReLU', 'aten.relu.default']"),
        ("__import__('os').abort()", "['', '']"),
        ("[" * 9000, "[" * 9000),
        (str(["a"] * 100), str(["b"] * 100)),
    ],
)
def test_senseless_metadata_is_no_name(scopes, classes, tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"], "mine")
    for key, value in (("name_scopes", scopes), ("class_hierarchy", classes)):
        node.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([node], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    assert list(import_model(tmp_path / "model.onnx").layers) == ["mine"]


def test_a_name_of_endless_depth_costs_no_time():
    deep = "/a" * 200_000 + "/Relu"
    assert named(("Relu", deep), ("Tanh", "/b/Tanh")) == [deep, "b"]

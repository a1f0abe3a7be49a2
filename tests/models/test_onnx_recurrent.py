"""RNN, LSTM, GRU and ReverseSequence against onnxruntime, the reference and torch's layers."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from interpret_server.errors import InvalidModel
from interpret_server.models.onnx import import_model, runtime, to_module
from interpret_server.models.onnx.operators.cells import Recurrence

STEPS, WIDTH, HIDDEN = 5, 3, 4
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
DIRECTIONS = ("forward", "reverse", "bidirectional")
BATCH_AXIS = {"x": 1, "lengths": 0, "h": 1, "c": 1}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": ({}, {}),
    "no bias": ({"bias": False}, {}),
    "no states": ({"states": False}, {}),
    "lengths": ({"lengths": True}, {}),
    "lengths, no states": ({"lengths": True, "states": False}, {}),
    "lengths, no cell": ({"lengths": True, "last": 2}, {}),
    "clip": ({}, {"clip": 0.3}),
    "coupled": ({}, {"input_forget": 1}),
    "peepholes": ({"peepholes": True}, {}),
    "linear first": ({"lengths": True}, {"linear_before_reset": 1}),
}
ONLY = {"coupled": "LSTM", "peepholes": "LSTM", "linear first": "GRU"}
TABLE = [
    (name, direction, variant)
    for name, direction, variant in itertools.product(GATES, DIRECTIONS, VARIANTS)
    if ONLY.get(variant, name) == name
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def inputs(
    name: str,
    direction: str = "forward",
    *,
    rows: int = 3,
    bias: bool = True,
    states: bool = True,
    lengths: bool = False,
    peepholes: bool = False,
    dtype: type = np.float32,
) -> dict[str, np.ndarray]:
    """Every input of a node, by name, in order; empty names stand for those left out."""
    noise = np.random.default_rng(0)
    d, g = 1 + (direction == "bidirectional"), GATES[name]

    def draw(*shape: int) -> np.ndarray:
        return (noise.standard_normal(shape) * 0.6).astype(dtype)

    return {
        "x": draw(STEPS, rows, WIDTH),
        "w": draw(d, g * HIDDEN, WIDTH),
        "r": draw(d, g * HIDDEN, HIDDEN),
        "b": draw(d, 2 * g * HIDDEN) if bias else None,
        "lengths": np.array([3, 5, 1][:rows], np.int32) if lengths else None,
        "h": draw(d, rows, HIDDEN) if states else None,
        "c": draw(d, rows, HIDDEN) if states and name == "LSTM" else None,
        "p": draw(d, 3 * HIDDEN) if peepholes else None,
    }


def write(
    path: Path,
    name: str,
    values: Mapping[str, Any],
    asked: tuple[str, ...] = ("x",),
    *,
    last: int = 3,
    opset: int = 14,
    **attributes: Any,
) -> dict[str, Tensor]:
    """Save one node; what is not asked for is stored. The inputs that are asked for."""
    names = [key if value is not None else "" for key, value in values.items()]
    while not names[-1]:
        names.pop()
    given = {key: value for key, value in values.items() if value is not None}
    outputs = ["y", "y_h", "y_c"][: min(last, 3 if name == "LSTM" else 2)]
    node = helper.make_node(name, names, outputs, "layer", hidden_size=HIDDEN, **attributes)
    wanted = [key for key in given if key in asked]
    first = bool(attributes.get("layout"))
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(
                key,
                helper.np_dtype_to_tensor_dtype(given[key].dtype),
                [
                    "n" if axis == (0 if first else BATCH_AXIS.get(key)) else size
                    for axis, size in enumerate(given[key].shape)
                ],
            )
            for key in wanted
        ],
        [
            helper.make_tensor_value_info(
                key,
                helper.np_dtype_to_tensor_dtype(values["x"].dtype),
                [None] * (4 if key == "y" else 3),
            )
            for key in outputs
        ],
        [numpy_helper.from_array(value, key) for key, value in given.items() if key not in asked],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    return {key: torch.from_numpy(given[key]) for key in wanted}


def check(path: Path, feeds: Mapping[str, Tensor]) -> nn.Module:
    module, session = to_module(path), runtime(path)
    expected = session._session.run(None, {key: value.numpy() for key, value in feeds.items()})
    for ours, value in zip(module(*feeds.values()), expected, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(value), rtol=2e-5, atol=2e-6)
    return module


@pytest.mark.parametrize(("name", "direction", "variant"), TABLE)
def test_layer_agrees_with_onnxruntime(name, direction, variant, path):
    options, attributes = VARIANTS[variant]
    last = options.get("last", 3)
    options = {key: value for key, value in options.items() if key != "last"}
    attributes = {**attributes, "direction": direction}
    for rows in (3, 1):
        values = inputs(name, direction, rows=rows, **options)
        stored = write(path, name, values, ("x", "lengths", "h", "c"), last=last, **attributes)
        check(path, stored)
        given = write(path, name, values, tuple(values), last=last, **attributes)
        check(path, given)


@pytest.mark.parametrize(
    ("function", "alpha", "beta"),
    [
        ("Affine", [0.7], [0.1]),
        ("Elu", [0.5], []),
        ("HardSigmoid", [0.3], [0.4]),
        ("LeakyRelu", [0.3], []),
        ("Relu", [], []),
        ("ScaledTanh", [0.5], [1.5]),
        ("Sigmoid", [], []),
        ("Softplus", [], []),
        ("Softsign", [], []),
        ("Tanh", [], []),
        ("ThresholdedRelu", [0.1], []),
    ],
)
@pytest.mark.parametrize("name", GATES)
def test_activation_agrees_with_onnxruntime(name, function, alpha, beta, path):
    count = {"RNN": 1, "GRU": 2, "LSTM": 3}[name]
    parameters = {"activation_alpha": alpha * count, "activation_beta": beta * count}
    values = inputs(name)
    values |= {key: values[key] * np.float32(0.3) for key in "wrb"}
    feeds = write(
        path,
        name,
        values,
        activations=[function] * count,
        **{key: value for key, value in parameters.items() if value},
    )
    check(path, feeds)


def test_activations_take_their_parameters_in_order_over_both_directions(path):
    feeds = write(
        path,
        "LSTM",
        inputs("LSTM", "bidirectional"),
        direction="bidirectional",
        activations=["Sigmoid", "LeakyRelu", "HardSigmoid", "HardSigmoid", "Tanh", "ScaledTanh"],
        activation_alpha=[0.3, 0.25, 0.22, 0.9],
        activation_beta=[0.45, 0.55, 1.1],
    )
    check(path, feeds)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_batch_first_layout_is_the_other_one_transposed(name, direction, path):
    values = inputs(name, direction, lengths=True)
    asked = ("x", "lengths", "h", "c")
    feeds = write(path, name, values, asked, direction=direction)
    y, *last = to_module(path)(*feeds.values())
    values |= {key: values[key].swapaxes(0, 1) for key in "xhc" if values[key] is not None}
    feeds = write(path, name, values, asked, direction=direction, layout=1)
    swapped, *swapped_last = to_module(path)(*feeds.values())
    assert torch.equal(swapped, y.permute(2, 0, 1, 3))
    for ours, expected in zip(swapped_last, last, strict=True):
        assert torch.equal(ours, expected.transpose(0, 1))


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("name", GATES)
def test_a_layer_that_torch_has_is_torchs(name, opset, path):
    options = {"linear_before_reset": 1} if name == "GRU" else {}
    values = inputs(name, "bidirectional", states=False)
    feeds = write(path, name, values, opset=opset, direction="bidirectional", **options)
    graph = import_model(path).graph
    (layer,) = (m for m in graph.modules() if isinstance(m, nn.RNNBase))
    assert isinstance(layer, getattr(nn, name))
    assert not layer.training
    assert not any(isinstance(m, Recurrence) for m in graph.modules())
    expected = ReferenceEvaluator(str(path)).run(None, {"x": feeds["x"].numpy()})
    if opset > 7 and name != "GRU":  # the reference has no GRU of two directions
        torch.testing.assert_close(graph(feeds["x"])[0], torch.tensor(expected[0]))


@pytest.mark.parametrize(
    ("name", "direction", "variant"),
    [row for row in TABLE if row[1] != "forward" or row[2] in ONLY],
)
def test_gradient_agrees_with_differences(name, direction, variant, path):
    options, attributes = VARIANTS[variant]
    last = options.get("last", 3)
    options = {key: value for key, value in options.items() if key != "last"}
    values = inputs(name, direction, dtype=np.float64, **options)
    attributes = {**attributes, "direction": direction}
    feeds = write(path, name, values, ("x", "lengths", "h", "c"), last=last, **attributes)
    module = to_module(path)
    lengths = feeds.pop("lengths", None)

    def run(x: Tensor, *states: Tensor) -> Any:
        return module(x, *(() if lengths is None else (lengths,)), *states)

    leaves = [value.requires_grad_() for value in feeds.values()]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("variant", ["all", "clip"])
def test_first_states_stored_for_one_row_serve_any_batch(name, variant, path):
    values = inputs(name, rows=1)
    write(path, name, values, **VARIANTS[variant][1])
    graph = import_model(path).graph
    x = torch.randn(STEPS, 4, WIDTH)
    together = graph(x)
    for row in range(4):
        for ours, alone in zip(together, graph(x[:, row : row + 1]), strict=True):
            torch.testing.assert_close(ours.select(-2, row), alone.select(-2, 0))


WRONG = {
    "w": (1, 16, WIDTH + 1),
    "r": (1, 16, HIDDEN + 1),
    "b": (1, 16),
    "h": (2, 3, HIDDEN),
    "c": (1, 3, HIDDEN - 1),
    "p": (1, HIDDEN),
}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("asked", [("x",), ("x", "h", "c", "w", "r", "b", "p")])
def test_wrong_shapes_are_refused_by_name(key, asked, path):
    values = inputs("LSTM", peepholes=True) | {key: np.ones(WRONG[key], np.float32)}
    write(path, "LSTM", values, asked)
    with pytest.raises(InvalidModel, match=r"(W|R|B|P|initial_h|initial_c) of LSTM has the shape"):
        import_model(path)


@pytest.mark.parametrize(("name", "variant"), [("LSTM", "all"), ("GRU", "all"), ("RNN", "clip")])
def test_states_of_another_batch_size_are_refused_before_torch_runs(name, variant, path):
    feeds = write(path, name, inputs(name), ("x", "h", "c"), **VARIANTS[variant][1])
    module = to_module(path)
    states = [value[:, :2] for value in list(feeds.values())[1:]]
    with pytest.raises(ValueError, match=r"\(1, 2, 4\)"):
        module(feeds["x"], *states)


def test_senseless_attributes_are_refused(path):
    write(path, "RNN", inputs("RNN"), activations=["Cosine"])
    with pytest.raises(InvalidModel, match="cosine"):
        import_model(path)
    write(path, "LSTM", inputs("LSTM"), activations=["Tanh"])
    with pytest.raises(InvalidModel, match="1 activations, not 3"):
        import_model(path)
    write(path, "LSTM", inputs("LSTM"), direction="sideways")
    with pytest.raises(InvalidModel, match="sideways"):
        import_model(path)


class Sequence(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = getattr(nn, name)(WIDTH, 6, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layers(x)
        return self.head(states.mean(1) + states[:, -1])


def export(module: nn.Module, path: Path, *, dynamo: bool, rows: int, free: bool) -> None:
    options: dict[str, Any] = {"opset_version": 18}
    if dynamo:
        options |= {"verbose": False, "external_data": False}
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},) if free else None
    elif free:
        options["dynamic_axes"] = {"x": {0: "n"}}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        x = torch.zeros(rows, 4, WIDTH)
        torch.onnx.export(module, (x,), path, dynamo=dynamo, input_names=["x"], **options)


@pytest.mark.parametrize(
    ("name", "dynamo", "rows", "free"),
    [
        *itertools.product(GATES, [False], [1, 2], [True]),
        *itertools.product(GATES, [False], [1, 2], [False]),
        ("LSTM", True, 2, True),
        ("GRU", True, 1, False),
    ],
)
def test_exported_layers_equal_the_eager_module(name, dynamo, rows, free, path):
    torch.manual_seed(0)
    eager = Sequence(name).eval().requires_grad_(False)
    export(eager, path, dynamo=dynamo, rows=rows, free=free)
    graph = import_model(path).graph
    for count in (1, 2, 5):
        x = torch.randn(count, 4, WIDTH, requires_grad=True)
        expected, ours = eager(x), graph(x)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        slopes = [torch.autograd.grad(y[:, 1].sum(), x)[0] for y in (expected, ours)]
        torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reverse_sequence_agrees_with_the_reference(time, batch, path):
    node = helper.make_node(
        "ReverseSequence", ["x", "lengths"], ["y"], time_axis=time, batch_axis=batch
    )
    shape = [4, 3, 2] if time == 0 else [3, 4, 2]
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, shape)],
        [numpy_helper.from_array(np.array([1, 4, 3], np.int64), "lengths")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    module = to_module(path)
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x.detach().numpy()})
    assert torch.equal(module(x)[0], torch.tensor(expected))
    assert torch.autograd.gradcheck(lambda x: module(x)[0], (x,))

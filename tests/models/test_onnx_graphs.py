"""Graphs of several nodes: shapes, branches, functions, linear layers and constants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_table import Case, ints, real, weights, write
from torch import nn

from interpret_server.errors import InvalidModel
from interpret_server.models.lowered import Lowered, Unlowerable
from interpret_server.models.onnx import import_model, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), outputs, **attributes)


def store(**values: Any) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def operators(lowered: Lowered) -> set[str]:
    graph = lowered.graph.graph
    return {getattr(n.target, "__name__", "") for n in graph.nodes if n.op == "call_function"}


def test_shape_arithmetic_follows_the_batch_without_waiting_for_the_device(path):
    write(
        path,
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "rows"),
            node("Mul", "rows two", "double"),
            node("Unsqueeze", "double axis", "first"),
            node("Concat", "first rest", "sizes", axis=0),
            node("Reshape", "x sizes", "y"),
        ],
        ["n", 4, 3],
        store(zero=np.int64(0), two=np.int64(2), axis=ints(0), rest=ints(2, -1)),
    )
    lowered = import_model(path)
    for rows in (1, 2, 5):
        assert lowered.graph(torch.zeros(rows, 4, 3)).shape == (2 * rows, 2, 3)
    assert "to_numbers" not in operators(lowered)


def test_sizes_that_do_not_depend_on_the_batch_become_literals(path):
    write(
        path,
        [
            node("Shape", "x", "shape"),
            node("Slice", "shape one three axis", "inner"),
            node("ReduceProd", "inner", "count", keepdims=1),
            node("Concat", "minus count", "sizes", axis=0),
            node("Reshape", "x sizes", "y"),
        ],
        ["n", 4, 3],
        store(one=ints(1), three=ints(3), axis=ints(0), minus=ints(-1)),
    )
    lowered = import_model(path)
    assert lowered.graph(torch.zeros(5, 4, 3)).shape == (5, 12)
    assert operators(lowered) == {"reshape"}


def test_values_made_in_the_shape_of_the_input_follow_its_batch_size(path):
    write(
        path,
        [
            node("Shape", "x", "shape"),
            node("ConstantOfShape", "shape", "ones", value=store(one=np.ones(1, np.float32))[0]),
            node("Gather", "shape zero", "rows"),
            node("Range", "zero rows step", "count"),
            node("Cast", "count", "number", to=TensorProto.FLOAT),
            node("Unsqueeze", "number axis", "column"),
            node("Add", "ones column", "sum"),
            node("Mul", "sum x", "y"),
        ],
        ["n", 3],
        store(zero=np.int64(0), step=np.int64(1), axis=ints(1)),
    )
    graph = import_model(path).graph
    for rows in (1, 4):
        expected = (1 + torch.arange(float(rows)))[:, None].expand(rows, 3)
        assert torch.equal(graph(torch.ones(rows, 3)), expected)


def branches(path: Path, condition: Sequence[onnx.NodeProto], **stored: Any) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        return helper.make_graph([node(operator, "x", "z")], operator, [], [output])

    choice = node("If", "condition", "y", then_branch=branch("Relu"), else_branch=branch("Neg"))
    write(path, [*condition, choice], ["n", 3], store(**stored))


def test_a_branch_decided_by_shapes_is_inlined(path):
    branches(
        path,
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape one", "width"),
            node("Equal", "width three", "condition"),
        ],
        one=np.int64(1),
        three=np.int64(3),
    )
    lowered = import_model(path)
    assert torch.equal(lowered.graph(torch.tensor([[-1.0, 0, 2]])), torch.tensor([[0.0, 0, 2]]))


def test_a_branch_decided_by_values_is_taken_at_run_time(path):
    branches(
        path,
        [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "condition")],
        zero=real(0),
    )
    graph = import_model(path).graph
    x = torch.tensor([[-1.0, 0, 2]])
    assert torch.equal(graph(x), x.relu())
    assert torch.equal(graph(-x), x)


def test_a_product_and_a_sum_with_constants_are_one_linear_layer(path):
    write(
        path,
        [node("MatMul", "x w", "product"), node("Add", "b product", "y")],
        ["n", 3],
        store(w=weights(3, 2), b=weights(2)),
    )
    lowered = import_model(path)
    (linear,) = (m for m in lowered.graph.modules() if isinstance(m, nn.Linear))
    assert linear.bias is not None
    assert list(lowered.layers) == ["y"]
    x = torch.randn(4, 3)
    expected = x @ torch.tensor(weights(3, 2)) + torch.tensor(weights(2))
    torch.testing.assert_close(lowered.graph(x), expected)


def test_a_product_that_is_used_twice_keeps_its_own_value(path):
    write(
        path,
        [
            node("MatMul", "x w", "product"),
            node("Relu", "product", "positive"),
            node("Add", "product b", "sum"),
            node("Mul", "positive sum", "y"),
        ],
        ["n", 3],
        store(w=weights(3, 2), b=weights(2)),
    )
    lowered = import_model(path)
    assert {"product", "positive", "sum", "y"} == set(lowered.layers)
    x = torch.randn(4, 3)
    product = x @ torch.tensor(weights(3, 2))
    expected = product.relu() * (product + torch.tensor(weights(2)))
    torch.testing.assert_close(lowered.graph(x), expected)


@pytest.mark.parametrize(
    ("bounds", "kind"), [((0.0, None), nn.ReLU), ((0.0, 6.0), nn.ReLU6), ((-1.0, 1.0), nn.Hardtanh)]
)
def test_clip_with_constant_bounds_is_an_activation_module(bounds, kind, path):
    Case("Clip", constants=[None if b is None else real(b) for b in bounds]).write(path)
    assert [type(module) for module in import_model(path).graph.children()] == [kind]


def test_an_operator_known_only_by_its_standard_body_is_expanded(path):
    write(
        path,
        [node("NegativeLogLikelihoodLoss", "x t", "y", reduction="none")],
        [3, 4],
        store(t=ints(0, 2, 1)),
    )
    x = torch.randn(3, 4)
    torch.testing.assert_close(to_module(path)(x)[0], -x[torch.arange(3), torch.tensor([0, 2, 1])])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_standard_body_passes_its_attributes_on_to_the_bodies_inside(reduction, path):
    write(
        path,
        [node("SoftmaxCrossEntropyLoss", "x t", "y", reduction=reduction)],
        [3, 4],
        store(t=ints(0, 2, 1)),
    )
    x, t = torch.randn(3, 4), torch.tensor([0, 2, 1])
    expected = nn.functional.cross_entropy(x, t, reduction=reduction)
    torch.testing.assert_close(to_module(path)(x)[0], expected)


def test_a_function_of_the_files_own_is_expanded(path):
    body = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Add", ["a", "a"], ["sum"]),
            onnx.parser.parse_node("b = LeakyRelu <alpha: float = @slope> (sum)"),
        ],
        [helper.make_opsetid("", 17)],
        ["slope"],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="own", slope=0.5)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=8)
    path.write_bytes(model.SerializeToString())
    y = import_model(path).graph(torch.tensor([[-1.0, 3.0]]))
    assert torch.equal(y, torch.tensor([[-1.0, 6.0]]))


def test_an_unknown_operator_is_named_with_its_domain_and_opset(path):
    graph = helper.make_graph(
        [helper.make_node("Mystery", ["x"], ["y"], domain="elsewhere")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Unlowerable, match=r"Mystery \(domain elsewhere, opset 3\)"):
        import_model(path)


BOMBS = {
    "ConstantOfShape": ([node("ConstantOfShape", "s", "c")], {"s": ints(2**40)}),
    "Range": ([node("Range", "a b d", "c")], {"a": real(0), "b": real(1e12), "d": real(1)}),
    "Expand": ([node("Expand", "v s", "c")], {"v": real(1), "s": ints(2**20, 2**20)}),
    "Tile": ([node("Tile", "v s", "c")], {"v": weights(4), "s": ints(2**40)}),
    "Pad": ([node("Pad", "v s", "c")], {"v": weights(4), "s": ints(2**39, 2**39)}),
    "Resize": (
        [node("Resize", "v r s", "c")],
        {"v": weights(4), "r": np.zeros(0, np.float32), "s": np.array([1e12], np.float32)},
    ),
    "Conv": (
        [node("Conv", "v w", "c", pads=[2**40, 2**40])],
        {"v": weights(1, 1, 4), "w": weights(1, 1, 1)},
    ),
    "doubling": (
        [node("ConstantOfShape", "s", "c0")]
        + [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(40)]
        + [node("Identity", "c40", "c")],
        {"s": ints(2**20)},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_constant_too_large_to_compute_is_refused(name, path):
    nodes, stored = BOMBS[name]
    nodes = [*nodes, node("ReduceSum", "c", "total", keepdims=0), node("Add", "x total", "y")]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        store(**stored),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size < 5000
    with pytest.raises(InvalidModel, match="constant"):
        import_model(path)

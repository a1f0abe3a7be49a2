"""ONNX files that ask for too much, or for what is not theirs."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from interpret_server.errors import InvalidModel
from interpret_server.models.onnx import import_model, reference, runtime, to_module
from interpret_server.models.onnx import runtime as _runtime_function
from interpret_server.models.onnx.file import load
from interpret_server.models.onnx.limits import Limits

VALUES = np.arange(4, dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder / "model.onnx"


def model_of(
    nodes: Sequence[onnx.NodeProto], stored: Sequence[onnx.TensorProto] = (), opset: int = 17
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], list(stored))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def save(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString())


def outside(name: str, location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


ADD = [helper.make_node("Add", ["x", "w"], ["y"])]
RELU = helper.make_node("Relu", ["x"], ["y"])
READERS = pytest.mark.parametrize("read", [import_model, to_module, runtime, reference])


def nested(depth: int) -> onnx.NodeProto:
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    leaf = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "leaf", [], [result])
    node = leaf.node[0]
    for _ in range(depth):
        body = helper.make_graph([node], "body", [], [result])
        node = helper.make_node("If", ["c"], ["r"], then_branch=body, else_branch=leaf)
    node.output[0] = "y"
    return node


@READERS
def test_a_hard_link_to_a_file_elsewhere_is_refused(read, path):
    secret = path.parent.parent / "secret.bin"
    secret.write_bytes(VALUES.tobytes())
    os.link(secret, path.parent / "weights.bin")
    save(path, model_of(ADD, [outside("w", "weights.bin")]))
    with pytest.raises(InvalidModel, match="hard link"):
        read(path)


@READERS
def test_what_is_no_plain_file_is_refused_without_waiting(read, path):
    os.mkfifo(path.parent / "weights.bin")
    save(path, model_of(ADD, [outside("w", "weights.bin")]))
    with pytest.raises(InvalidModel, match="no plain file"):
        read(path)


@READERS
def test_data_outside_of_a_single_file_is_refused(read, path, monkeypatch):
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights.bin").write_bytes(VALUES.tobytes())
    monkeypatch.chdir(elsewhere)
    save(path, model_of(ADD, [outside("w", "weights.bin")]))
    with pytest.raises(InvalidModel, match="beside the model"):
        read(path)


@pytest.mark.parametrize(
    "place",
    [
        {"offset": "8", "length": "16"},
        {"offset": "-4", "length": "16"},
        {"offset": "4", "length": "-1"},
        {"offset": "99999999999999999999", "length": "16"},
        {"offset": "x"},
    ],
    ids=str,
)
@READERS
def test_places_outside_the_data_file_are_refused(read, place, path):
    (path.parent / "weights.bin").write_bytes(VALUES.tobytes())
    save(path, model_of(ADD, [outside("w", "weights.bin", **place)]))
    with pytest.raises(InvalidModel, match=r"within the file beside|shape says"):
        read(path)


def test_several_tensors_share_one_data_file(path):
    (path.parent / "weights.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    nodes = [helper.make_node("Add", ["x", "v"], ["z"]), helper.make_node("Mul", ["z", "w"], ["y"])]
    stored = [
        outside("v", "weights.bin", length="16"),
        outside("w", "weights.bin", offset="16", length="16"),
    ]
    save(path, model_of(nodes, stored))
    x = torch.randn(3, 4)
    expected = (x + torch.arange(4.0)) * torch.arange(4.0, 8.0)
    assert torch.equal(import_model(path).graph(x), expected)
    for run in (runtime(path), reference(path)):
        assert torch.equal(run.run(x)[0], expected)


def test_the_runtime_is_given_bytes_alone(path, monkeypatch):
    (path.parent / "weights.bin").write_bytes(VALUES.tobytes())
    save(path, model_of(ADD, [outside("w", "weights.bin")]))
    given = []
    real = onnxruntime.InferenceSession

    def session(model, *args, **kwargs):
        given.append(model)
        (path.parent / "weights.bin").unlink()
        return real(model, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert torch.equal(runtime(path).run(torch.ones(1, 4))[0][0], torch.arange(1.0, 5.0))
    assert isinstance(given[0], bytes)
    assert b"weights.bin" not in given[0]


def test_weights_too_large_for_one_message_are_handed_over_apart(path, monkeypatch):
    from interpret_server.models.onnx import runtime as function

    module = sys.modules[function.__module__]
    monkeypatch.setattr(module, "_LARGEST_MESSAGE", 100)
    monkeypatch.setattr(module, "_LARGE_WEIGHT", 10)
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    save(
        path,
        model_of(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(weight, "w")]
        ),
    )
    x = torch.randn(3, 4)
    torch.testing.assert_close(_runtime_function(path).run(x)[0], x @ torch.tensor(weight))


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(file=100), "the file is 0 MiB; at most 0 MiB"),
        (Limits(nodes=2), "the graph has 4 nodes; at most 2"),
        (Limits(nodes=4), "has 10 nodes; at most 4"),
        (Limits(depth=2), "nested 3 deep; at most 2"),
        (Limits(elements=3), "'value_ints' of Constant lists more than the 3 numbers"),
        (Limits(data=15), "the weights beside the file are 0 MiB"),
    ],
)
def test_each_limit_is_told_in_words(limits, told, path):
    (path.parent / "weights.bin").write_bytes(VALUES.tobytes())
    nodes = [
        helper.make_node("Constant", [], ["unused"], value_ints=[1, 2, 3, 4]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        nested(3),
    ]
    nodes[2].output[0] = "z"
    nodes.append(helper.make_node("Add", ["z", "w"], ["y"]))
    model = model_of(nodes, [outside("w", "weights.bin")])
    save(path, model)
    assert load(path).graph.initializer[0].raw_data == VALUES.tobytes()
    with pytest.raises(InvalidModel) as caught:
        load(path, limits)
    assert told in str(caught.value)


def test_an_import_ends_at_its_deadline(path):
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    save(path, model_of(nodes))
    started = time.monotonic()
    with pytest.raises(InvalidModel, match=r"longer than the 0\.05 seconds"):
        import_model(path, limits=Limits(seconds=0.05))
    assert time.monotonic() - started < 5


def field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message, which the package itself does not write so deeply nested."""
    length, told = len(data), b""
    while length > 127:
        length, told = length >> 7, told + bytes([length & 127 | 128])
    return bytes([number << 3 | 2]) + told + bytes([length]) + data


@pytest.mark.parametrize("depth", [33, 60])
def test_graphs_nested_too_deeply_are_refused(depth, path):
    inner = nested(1).SerializeToString()
    for _ in range(depth):
        graph = field(1, inner) + field(2, b"g")
        branch = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        inner = field(1, b"c") + field(2, b"y") + field(4, b"If") + field(5, branch)
    head = model_of([])
    del head.graph.input[:]
    path.write_bytes(head.SerializeToString() + field(7, field(1, inner)))
    with pytest.raises(InvalidModel, match=r"nested|corrupt"):
        import_model(path)


@pytest.mark.parametrize("shape", [[2**40], [-4], [2**62, 2**62], [4, 4]])
def test_a_stored_shape_that_its_bytes_do_not_fill_is_refused(shape, path):
    tensor = numpy_helper.from_array(VALUES, "w")
    tensor.dims[:] = shape
    save(path, model_of(ADD, [tensor]))
    for read in (import_model, runtime, reference):
        with pytest.raises(InvalidModel, match="shape says"):
            read(path)


def test_fused_operators_that_optimisers_leave_in_the_standard_domain_pass_the_checker(path):
    scale = numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "w")
    node = helper.make_node("LayerNormalization", ["x", "w"], ["y"], axis=-1)
    model = model_of([node], [scale], opset=13)  # which had no such operator
    model.graph.name = ""
    save(path, model)
    x = torch.randn(3, 4)
    expected = torch.nn.functional.layer_norm(x, (4,)) * torch.arange(1.0, 5.0)
    torch.testing.assert_close(import_model(path).graph(x), expected)
    torch.testing.assert_close(runtime(path).run(x)[0], expected)


def test_a_newer_format_than_the_checker_knows_is_no_reason_to_refuse(path):
    model = model_of([RELU])
    model.ir_version = onnx.IR_VERSION + 1
    save(path, model)
    x = torch.randn(2, 4)
    assert torch.equal(import_model(path).graph(x), x.relu())


def test_the_checker_tells_what_is_wrong(path):
    save(path, model_of([helper.make_node("Softmax", ["x"], ["y"], nonsense=1)]))
    with pytest.raises(InvalidModel, match="breaks the ONNX standard") as caught:
        import_model(path)
    assert len(str(caught.value)) < 350

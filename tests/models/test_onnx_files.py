"""ONNX files that nobody vouches for, what files say about themselves, and real ones."""

import builtins
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from interpret_server.errors import FailedPrecondition, InvalidModel, InvalidRequest
from interpret_server.models.lowered import Unlowerable
from interpret_server.models.onnx import import_model, read_header, runtime, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder / "model.onnx"


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    stored: Sequence[onnx.TensorProto] = (),
    shape: Sequence[int | str | None] = ("n", 4),
    result: Sequence[int | str | None] = ("n", 4),
    dtype: int = TensorProto.FLOAT,
) -> None:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, result)],
        list(stored),
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())


def stored_elsewhere(location: str, count: int = 4) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


ADD = [helper.make_node("Add", ["x", "w"], ["y"])]
VALUES = np.arange(4, dtype=np.float32)


def test_data_in_a_plain_file_beside_the_model_is_read(path):
    (path.parent / "weights.bin").write_bytes(VALUES.tobytes())
    save(path, ADD, [stored_elsewhere("weights.bin")])
    expected = torch.ones(2, 4) + torch.tensor(VALUES)
    assert torch.equal(import_model(path).graph(torch.ones(2, 4)), expected)
    assert torch.equal(runtime(path).run(torch.ones(2, 4))[0], expected)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/hostname", "inner/../../secret.bin", "link.bin", "", "..", "."],
)
@pytest.mark.parametrize("read", [import_model, to_module, runtime])
def test_data_elsewhere_is_refused(location, read, path):
    secret = path.parent.parent / "secret.bin"
    secret.write_bytes(VALUES.tobytes())
    (path.parent / "inner").mkdir()
    (path.parent / "link.bin").symlink_to(secret)
    save(path, ADD, [stored_elsewhere(location)])
    with pytest.raises(InvalidModel, match="beside the model") as caught:
        read(path)
    assert str(path.parent) not in str(caught.value)


def test_data_elsewhere_is_refused_inside_constants_too(path):
    secret = path.parent.parent / "secret.bin"
    secret.write_bytes(VALUES.tobytes())
    constant = helper.make_node("Constant", [], ["w"], value=stored_elsewhere("../secret.bin"))
    save(path, [constant, *ADD])
    with pytest.raises(InvalidModel, match="beside the model"):
        import_model(path)


def test_data_shorter_than_its_shape_is_refused(path):
    (path.parent / "weights.bin").write_bytes(VALUES[:2].tobytes())
    save(path, ADD, [stored_elsewhere("weights.bin")])
    with pytest.raises(InvalidModel):
        import_model(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an ONNX file",
        b"PK\x03\x04" + bytes(100),
        os.urandom(200),
        b"\x08\x07",
    ],
    ids=["empty", "text", "archive", "noise", "fragment"],
)
@pytest.mark.parametrize("read", [import_model, read_header, runtime])
def test_a_file_of_another_format_is_refused(data, read, path):
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match="ONNX"):
        read(path)


def test_a_truncated_file_is_refused(path):
    save(path, ADD, [numpy_helper.from_array(VALUES, "w")])
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidModel):
            import_model(path)


def test_a_damaged_file_is_refused_in_words_or_computes_something(path):
    weight = np.linspace(-1, 1, 54, dtype=np.float32).reshape(2, 3, 3, 3)
    stored = {"w": weight, "s": np.array([0, -1], np.int64), "g": weight.reshape(18, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], ceil_mode=1),
        helper.make_node("LRN", ["b"], ["c"], size=3),
        helper.make_node("Reshape", ["c", "s"], ["d"]),
        helper.make_node("Gemm", ["d", "g"], ["e"], alpha=0.5),
        helper.make_node("Softmax", ["e"], ["y"], axis=1),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    save(path, nodes, tensors, shape=["n", 3, 10, 10], result=["n", 3])
    sound = path.read_bytes()
    outcomes = set()
    generator = np.random.default_rng(0)
    for _ in range(400):
        data = bytearray(sound)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(0, 256)
        path.write_bytes(data)
        try:
            import_model(path)
            outcomes.add("computes")
        except (InvalidModel, Unlowerable):
            outcomes.add("refused")
    assert outcomes == {"computes", "refused"}


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([helper.make_node("Relu", ["missing"], ["y"])], "standard"),
        ([helper.make_node("Relu", ["x", "x"], ["y"])], "standard"),
        ([helper.make_node("Nonsense", ["x"], ["y"])], "standard"),
    ],
)
def test_a_graph_that_breaks_the_standard_is_refused(nodes, told, path):
    save(path, nodes)
    with pytest.raises(InvalidModel, match=told) as caught:
        import_model(path)
    assert str(path.parent) not in str(caught.value)


def test_constants_whose_shapes_do_not_fit_are_refused(path):
    shape = numpy_helper.from_array(np.array([3], np.int64), "s")
    nodes = [
        helper.make_node("Reshape", ["w", "s"], ["v"]),
        helper.make_node("Add", ["x", "v"], ["y"]),
    ]
    save(path, nodes, [numpy_helper.from_array(VALUES, "w"), shape])
    with pytest.raises(InvalidModel, match="shapes do not fit"):
        import_model(path)


def test_a_function_that_calls_itself_is_refused(path):
    body = helper.make_function(
        "own",
        "Again",
        ["a"],
        ["b"],
        [helper.make_node("Again", ["a"], ["b"], domain="own")],
        [helper.make_opsetid("own", 1)],
    )
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Again", ["x"], ["y"], domain="own")], "g", value[:1], value[1:]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"recursive|nested"):
        import_model(path)


def test_a_header_tells_names_shapes_and_types(path):
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    save(path, nodes, [numpy_helper.from_array(VALUES, "w")], shape=[1, "width"])
    header = read_header(path)
    (info,) = header.inputs
    assert (info.name, info.dtype, info.shape) == ("x", torch.float32, (1, None))
    assert (info.batch, info.row_shape) == (1, (None,))
    assert header.outputs[0].batch is None
    assert header.opset == 17


def test_training_mode_is_served_in_inference_form(path):
    scale, shift, mean = (np.array(v, np.float32) for v in ([1, 2], [0.5, 0], [1, -1]))
    stored = [
        numpy_helper.from_array(value, name)
        for name, value in {"s": scale, "b": shift, "m": mean, "v": np.abs(mean) * 4}.items()
    ]
    stored += [numpy_helper.from_array(np.float32(0.5), "ratio")]
    stored += [numpy_helper.from_array(np.array(True), "training")]
    nodes = [
        helper.make_node(
            "BatchNormalization", ["x", "s", "b", "m", "v"], ["n", "m1", "v1"], training_mode=1
        ),
        helper.make_node("Dropout", ["n", "ratio", "training"], ["y"]),
    ]
    save(path, nodes, stored, shape=["rows", 2], result=["rows", 2])
    graph = import_model(path).graph
    x = torch.randn(5, 2)
    expected = (x - torch.tensor(mean)) / (4 + 1e-5) ** 0.5 * torch.tensor(scale)
    for _ in range(2):
        torch.testing.assert_close(graph(x), expected + torch.tensor(shift))
    assert any(isinstance(module, nn.BatchNorm1d) for module in graph.modules())


def test_half_precision_becomes_single_and_is_noted(path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["q"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT16),
    ]
    weight = np.linspace(-1, 1, 16, dtype=np.float16).reshape(4, 4)
    save(path, nodes, [numpy_helper.from_array(weight, "w")], dtype=TensorProto.FLOAT16)
    lowered = import_model(path)
    x = torch.randn(3, 4, requires_grad=True)
    y = lowered.graph(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x @ torch.tensor(weight).float())
    assert any("float16" in note for note in lowered.notes)
    assert runtime(path).run(x)[0].dtype == torch.float16
    assert to_module(path)(x.half())[0].dtype == torch.float16


def test_double_precision_stays(path):
    weight = numpy_helper.from_array(np.eye(4), "w")
    save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight], dtype=TensorProto.DOUBLE)
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(import_model(path).graph(x), x)


def test_a_batch_size_that_no_shape_frees_is_kept_and_noted(path):
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    stored = [weight, numpy_helper.from_array(np.array([3, 2], np.int64), "s")]
    nodes = [
        helper.make_node("Add", ["x", "w"], ["sum"]),
        helper.make_node("Reshape", ["sum", "s"], ["y"]),
    ]
    save(path, nodes, stored, shape=[3, 2], result=[3, 2])
    lowered = import_model(path)
    assert lowered.notes == ["The file fixes the batch size to 3; its shapes allow no other."]
    assert torch.equal(lowered.graph(torch.zeros(3, 2)), torch.ones(3, 2))


def test_the_runtime_runs_any_number_of_rows_of_a_fixed_batch(path):
    save(path, [helper.make_node("Relu", ["x"], ["y"])], shape=[3, 4], result=[3, 4])
    session = runtime(path)
    assert (session.input_names, session.output_names) == (("x",), ("y",))
    assert (session.input_shapes, session.input_dtypes) == (((3, 4),), (torch.float32,))
    for rows in (1, 3, 5, 6):
        x = torch.randn(rows, 4)
        assert torch.equal(session.run(x)[0], x.relu())


def test_the_runtime_refuses_inputs_in_one_sentence(path):
    save(path, [helper.make_node("Relu", ["x"], ["y"])])
    session = runtime(path)
    with pytest.raises(InvalidRequest, match="shape"):
        session.run(torch.zeros(2, 5, 6))
    with pytest.raises(InvalidRequest, match="takes 1 inputs"):
        session.run(torch.zeros(2, 4), torch.zeros(2, 4))


def test_a_missing_runtime_names_what_to_install(path, monkeypatch):
    save(path, [helper.make_node("Relu", ["x"], ["y"])])
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(FailedPrecondition, match=r"interpret-server\[cpu\]"):
        runtime(path)


REAL = (
    "models/awkward/mlperf_tiny_resnet8_cifar10_nhwc_tf2onnx.onnx",
    "models/imagenet/SqueezeNet1_1_fp32.onnx",
    "models/tabular/wml_iris.onnx",
    "vnncomp",
)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_real_files_compute_what_onnxruntime_does(name, shared_data):
    place = shared_data / name
    paths = sorted(place.glob("*/models/*.onnx")) if place.is_dir() else [place]
    assert paths
    for path in paths:
        session, graph = runtime(path), import_model(path).graph
        (info,) = read_header(path).inputs
        for rows in (1, 3):
            x = torch.rand(rows, *info.row_shape)
            ours, expected = graph(x), session.run(x)[0]
            assert ours.shape == expected.shape
            assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max(), path.name

"""From a model file and a manifest to a verified classifier."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from interpret_server.errors import (
    FailedPrecondition,
    InterpretError,
    InvalidModel,
    InvalidRequest,
    ModelRejected,
    NotFound,
)
from interpret_server.models import onnx as onnx_package
from interpret_server.models.classifier import Capability
from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.lowered import Lowered
from interpret_server.models.manifest import Manifest
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.sources import TorchScriptSource
from interpret_server.models.targets import Targets
from interpret_server.testing.classifiers import classifier

SHAPE = (3, 8, 8)
IMAGE = {"shape": SHAPE, "bounds": (0, 1)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.last = nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.conv(x)).flatten(1))


class Branching(Net):
    """Asks the data which way to go, so it has no graph; its rows influence each other."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if bool(x.sum() > 0):
            x = x * 2
        return self.last(self.relu(x).flatten(1))


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x + torch.rand_like(x))


def _load(path: Path, **fields: Any) -> LoadedModel:
    return load_classifier("net", path, Manifest.model_validate(fields), device=torch.device("cpu"))


def _script(net: nn.Module, folder: Path, example: Tensor | None = None) -> Path:
    path, net = folder / "model.pt", net.eval()
    program = torch.jit.script(net) if example is None else torch.jit.trace(net, example)
    torch.jit.save(program, str(path))
    return path


def _onnx(
    net: Net,
    folder: Path,
    *,
    rows: int | str = "N",
    end: Sequence[onnx.NodeProto] = (),
    output: str = "logits",
    element: int = TensorProto.FLOAT,
    reshape: Sequence[int] = (-1, 256),
) -> Path:
    """`net` as an ONNX file, whose `end` makes `output` out of `logits`."""
    weights = {
        "conv.weight": net.conv.weight,
        "conv.bias": net.conv.bias,
        "last.weight": net.last.weight,
        "last.bias": net.last.bias,
        "sizes": torch.tensor(reshape),
    }
    nodes = [
        helper.make_node(
            "Conv", ["x", "conv.weight", "conv.bias"], ["c"], "conv", pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "sizes"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "last.weight", "last.bias"], ["logits"], "last", transB=1),
        *end,
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, [rows, *SHAPE])],
        [helper.make_tensor_value_info(output, element, [rows, 5])],
        [numpy_helper.from_array(v.detach().numpy(), name) for name, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def _check_same(loaded: LoadedModel, net: nn.Module, rows: int = 5) -> None:
    """The same logits, gradients and rectifier rules as the eager network."""
    expected = classifier(net, SHAPE)
    x, targets = torch.rand(rows, *SHAPE), Targets.classes(torch.arange(rows) % 5)
    torch.testing.assert_close(loaded.classifier(x), expected(x))
    for rule in ReluRule:
        torch.testing.assert_close(
            loaded.classifier.gradient(x, targets, rule).inputs,
            expected.gradient(x, targets, rule).inputs,
        )


def test_a_torchscript_archive_is_served_as_a_graph(tmp_path: Path) -> None:
    net = Net()
    path = _script(net, tmp_path)
    loaded = _load(path, **IMAGE, labels=tuple("abcde"), version="7", max_batch=9)
    info = loaded.info
    _check_same(loaded, net)
    assert (info.name, info.version, info.format, info.form) == ("net", "7", "torchscript", "graph")
    assert (info.form_reason, info.notes, info.logits_from) == ("", (), "logits")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.size == path.stat().st_size
    assert (info.device, info.precision, info.input_dtype) == ("cpu", "float32", "float32")
    assert (info.input_name, info.input_shape, info.input_layout) == ("x", SHAPE, "CHW")
    assert (info.bounds, info.classes, info.labels) == ((0, 1), 5, tuple("abcde"))
    assert info.capabilities == {"gradient", "layers", "rectifiers", "bounds"}
    assert info.lacking == {}
    assert info.max_batch == 9
    assert info.verification.reference == "torch.jit"
    assert info.verification.relative_difference < 1e-5
    assert (info.verification.batch_sizes, info.verification.inputs) == ((5, 2), 7)
    assert {layer.name: layer.shape for layer in info.layers}["relu"] == (4, 8, 8)
    assert loaded.classifier.sha256 == info.sha256
    assert loaded.classifier.labels == info.labels


def test_an_onnx_file_is_served_as_the_same_graph(tmp_path: Path) -> None:
    net = Net()
    loaded = _load(_onnx(net, tmp_path), bounds=(0, 1))
    _check_same(loaded, net)
    info = loaded.info
    assert (info.format, info.form, info.input_shape) == ("onnx", "graph", SHAPE)
    assert (info.input_name, info.output_name, info.max_batch) == ("x", "logits", 64)
    assert info.verification.reference == "onnxruntime"
    assert info.verification.relative_difference < 1e-5
    assert {layer.name: layer.shape for layer in info.layers}["relu"] == (4, 8, 8)


def test_the_logits_before_an_onnx_softmax_are_served(tmp_path: Path) -> None:
    net = Net()
    end = [helper.make_node("Softmax", ["logits"], ["p"], "softmax", axis=-1)]
    loaded = _load(_onnx(net, tmp_path, end=end, output="p"), bounds=(0, 1))
    _check_same(loaded, net)
    assert (loaded.info.logits_from, loaded.info.output_name) == ("softmax", "p")


@pytest.mark.parametrize("reshape", [(-1, 256), (1, 256)])
def test_an_onnx_file_of_one_row_takes_many(tmp_path: Path, reshape: tuple[int, ...]) -> None:
    net = Net()
    loaded = _load(_onnx(net, tmp_path, rows=1, reshape=reshape), bounds=(0, 1))
    _check_same(loaded, net)
    assert loaded.info.verification.batch_sizes == (5, 2)


def test_an_archive_traced_at_one_row_takes_many(tmp_path: Path) -> None:
    class OneRow(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.relu(self.conv(x)).reshape(1, 256))

    net = OneRow()
    loaded = _load(_script(net, tmp_path, torch.rand(1, *SHAPE)), **IMAGE)
    free = Net()
    free.load_state_dict(net.state_dict())
    _check_same(loaded, free)
    assert "1 row at a time" in loaded.info.form_reason


def test_the_manifests_normalisation_is_part_of_the_model(tmp_path: Path) -> None:
    net = Net()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    loaded = _load(_onnx(net, tmp_path), bounds=(0, 1), mean=mean.tolist(), std=std.tolist())
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(
        loaded.classifier(x), net((x - mean[:, None, None]) / std[:, None, None])
    )
    assert loaded.classifier.centre.flatten().tolist() == pytest.approx(mean.tolist())


def test_float64_files_stay_float64(tmp_path: Path) -> None:
    net = Net().double()
    path = _onnx(net, tmp_path, element=TensorProto.DOUBLE)
    for loaded in (_load(path, bounds=(0, 1)), _load(_script(net, tmp_path), **IMAGE)):
        x = torch.rand(2, *SHAPE, dtype=torch.float64)
        torch.testing.assert_close(loaded.classifier(x), net(x), rtol=1e-12, atol=1e-12)
        assert loaded.info.precision == loaded.info.input_dtype == "float64"
        assert loaded.info.verification.relative_difference < 1e-12


def test_a_frozen_float64_archive_is_known_by_its_constants(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.freeze(torch.jit.script(Net().double().eval())), str(path))
    assert _load(path, **IMAGE).info.precision == "float64"


def test_float16_files_are_served_in_float32(tmp_path: Path) -> None:
    net = Net().half()
    path = _onnx(net, tmp_path, element=TensorProto.FLOAT16)
    for loaded in (_load(path, bounds=(0, 1)), _load(_script(net, tmp_path), **IMAGE)):
        assert loaded.info.precision == "float32"
        assert any("float16" in note for note in loaded.info.notes)
        assert loaded.classifier(torch.rand(2, *SHAPE)).dtype is torch.float32


def test_a_program_that_branches_on_data_runs_as_its_archive(tmp_path: Path) -> None:
    net = Branching()
    loaded = _load(_script(net, tmp_path), **IMAGE)
    model, info = loaded.classifier, loaded.info
    assert info.form == "archive"
    assert info.form_reason == (
        "prim::If depends on tensor data. It runs 1 row at a time, because its control flow may "
        "depend on all rows."
    )
    assert info.capabilities == {"gradient", "rectifiers", "bounds"}
    assert info.form_reason in info.lacking["layers"]
    assert info.layers == ()
    x = torch.rand(3, *SHAPE)
    leaf = x.clone().requires_grad_()
    logits = torch.cat([net(row[None]) for row in leaf])
    (expected,) = torch.autograd.grad(logits[:, 2].sum(), leaf)
    targets = Targets.classes(torch.tensor([2, 2, 2]))
    for _ in range(4):  # a profiling executor would change its answer after the first calls
        found = model.gradient(x, targets)
        torch.testing.assert_close(found.inputs, expected)
        torch.testing.assert_close(found.logits, logits.detach())
    with pytest.raises(FailedPrecondition, match="layers of this model cannot be read"):
        model.layer("relu")


def test_an_onnx_operator_without_a_graph_leaves_predictions(tmp_path: Path) -> None:
    net = Net()
    end = [
        helper.make_node(
            "Scaler", ["logits"], ["y"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[2.0]
        )
    ]
    loaded = _load(_onnx(net, tmp_path, end=end, output="y"), bounds=(0, 1))
    x = torch.rand(5, *SHAPE)
    torch.testing.assert_close(loaded.classifier(x), 2 * net(x))
    assert loaded.info.form == "runtime"
    assert loaded.info.capabilities == {"bounds"}
    assert "Scaler" in loaded.info.lacking["gradient"]
    assert loaded.info.verification.relative_difference < 1e-6
    model = loaded.classifier
    assert model.lacking[Capability.RECTIFIERS] == model.lacking[Capability.GRADIENT]


def test_a_float16_archive_without_a_graph_keeps_its_precision(tmp_path: Path) -> None:
    net = Branching().half()
    loaded = _load(_script(net, tmp_path), **IMAGE)
    x = torch.rand(1, *SHAPE)
    assert (loaded.info.form, loaded.info.precision) == ("archive", "float16")
    assert loaded.info.input_dtype == "float32"
    assert loaded.classifier(x).dtype is torch.float32
    torch.testing.assert_close(loaded.classifier(x), net(x.half()).float())


def test_a_random_program_is_served_unverified_with_a_note(tmp_path: Path) -> None:
    info = _load(_script(Random(), tmp_path), **IMAGE).info
    assert info.verification.reference == "none"
    assert any("another answer each time" in note for note in info.notes)


def test_dropout_left_in_training_mode_is_served_in_its_inference_form(tmp_path: Path) -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(nn.functional.dropout(x, 0.5, True))

    net = Dropping()
    loaded = _load(_script(net, tmp_path), **IMAGE)
    plain = Net()
    plain.load_state_dict(net.state_dict())
    _check_same(loaded, plain)
    assert any("another answer each time" in note for note in loaded.info.notes)


def test_a_wrong_lowering_is_refused_with_the_measured_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = TorchScriptSource.lower

    def wrong(self: TorchScriptSource, x: Tensor) -> Lowered:
        lowered = lower(self, x)
        for parameter in lowered.graph.parameters():
            parameter.data = parameter.data * 1.01
        return lowered

    monkeypatch.setattr(TorchScriptSource, "lower", wrong)
    with pytest.raises(ModelRejected, match=r"differs from the file's own execution \(torch.jit\)"):
        _load(_script(Net(), tmp_path), **IMAGE)


def test_an_unforeseen_failure_of_lowering_leaves_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TorchScriptSource, x: Tensor) -> Lowered:
        raise KeyError("internal")

    monkeypatch.setattr(TorchScriptSource, "lower", broken)
    net = Net()
    loaded = _load(_script(net, tmp_path), **IMAGE)
    _check_same(loaded, net)
    assert loaded.info.form == "archive"
    assert "internal" not in loaded.info.form_reason


def test_without_onnxruntime_a_file_is_served_unverified_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(path: Path) -> None:
        raise FailedPrecondition("onnxruntime is not installed")

    monkeypatch.setattr(onnx_package, "runtime", absent)
    net = Net()
    loaded = _load(_onnx(net, tmp_path), bounds=(0, 1))
    _check_same(loaded, net)
    assert loaded.info.verification.reference == "none"
    assert "not installed" in loaded.info.notes[0]


def _bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _zip(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (b"", InvalidModel, "neither a TorchScript archive nor an ONNX model"),
        (b"not a model at all", InvalidModel, "neither a TorchScript archive nor an ONNX model"),
        (b"\x89HDF\r\n\x1a\n", InvalidModel, "neither a TorchScript archive nor an ONNX model"),
        (b"\x80\x02}q\x00.", InvalidModel, "pickled checkpoint"),
        (_bytes(Net().state_dict()), InvalidModel, "pickled checkpoint"),
        (_zip("model/data.txt"), InvalidModel, "not a TorchScript archive"),
        (_zip("m/archive_format", "m/models/model.json"), ModelRejected, "not supported yet"),
        (_zip("m/data.pkl", "m/constants.pkl", "m/version"), InvalidModel, "corrupt"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, content: bytes, error: type[InterpretError], sentence: str
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        _load(path, **IMAGE)
    assert sentence in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    for path in (_script(Net(), tmp_path), _onnx(Net(), tmp_path)):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InvalidModel):
            _load(path, **IMAGE)


def test_a_file_of_another_format_than_stated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"says an ONNX model, but the file is a TorchScript"):
        _load(_script(Net(), tmp_path), **IMAGE, format="onnx")
    with pytest.raises(InvalidModel, match=r"says a TorchScript archive, but the file is an ONNX"):
        _load(_onnx(Net(), tmp_path), **IMAGE, format="torchscript")


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(NotFound, match="does not exist"):
            _load(path)


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({}, "manifest.inputs[0].shape", "does not tell the shape"),
        ({"shape": (3, None, 8)}, "manifest.inputs[0].shape", "[3, free, 8] leaves some"),
        ({"shape": (3, 9, 8)}, "manifest.inputs[0].shape", "cannot be multiplied"),
        ({"shape": (1 << 15, 1 << 15)}, "manifest.inputs[0].shape", "too large"),
        ({**IMAGE, "labels": ("a", "b")}, "manifest.labels", "2 labels for 5 classes"),
        ({**IMAGE, "mean": (1, 2)}, "manifest.inputs[0].mean", "2 values for 3 channels"),
        ({**IMAGE, "layout": "CL"}, "manifest.inputs[0].layout", "CL does not fit"),
        (
            {**IMAGE, "layout": "other", "mean": (1, 2, 3)},
            "manifest.inputs[0].layout",
            "which axis",
        ),
        ({**IMAGE, "output": {"name": "y"}}, "manifest.output.name", "'output' [1, 5]"),
    ],
)
def test_what_the_manifest_must_say_is_named(
    tmp_path: Path, fields: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _load(_script(Net(), tmp_path), **fields)
    assert caught.value.violations[0].field == field
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({"shape": (3, 9, 9)}, "manifest.inputs[0].shape", "takes [3, 8, 8], not [3, 9, 9]"),
        ({"shape": (3, 8)}, "manifest.inputs[0].shape", "takes [3, 8, 8], not [3, 8]"),
        ({"inputs": ({"name": "image"},)}, "manifest.inputs[0].name", "'x'"),
    ],
)
def test_a_manifest_that_contradicts_an_onnx_file_is_refused(
    tmp_path: Path, fields: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _load(_onnx(Net(), tmp_path), **fields)
    assert caught.value.violations[0].field == field
    assert sentence in caught.value.message


def test_an_onnx_file_of_too_many_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="takes 100000000 rows at a time; at most 1024"):
        _load(_onnx(Net(), tmp_path, rows=100_000_000), **IMAGE)


def test_models_of_two_inputs_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(ModelRejected, match=r"this one has 2 \(a, b\)"):
        _load(_script(Two(), tmp_path), shape=(4,))


def test_models_of_integers_are_refused(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x)

    with pytest.raises(ModelRejected, match="the file takes integers"):
        _load(_script(Tokens(), tmp_path), shape=(4,))
    with pytest.raises(ModelRejected, match="takes int64 values"):
        _load(_onnx(Net(), tmp_path, element=TensorProto.INT64), **IMAGE)


def test_a_file_that_expects_channels_last_is_known_by_its_shape(tmp_path: Path) -> None:
    class Last(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x.permute(0, 3, 1, 2))

    net = Last()
    loaded = _load(_script(net, tmp_path), shape=(8, 8, 3), bounds=(0, 1), mean=(0.1, 0.2, 0.3))
    assert loaded.info.input_layout == "HWC"
    x = torch.rand(2, 8, 8, 3)
    torch.testing.assert_close(loaded.classifier(x), net(x - torch.tensor([0.1, 0.2, 0.3])))


@pytest.mark.gpu
def test_a_model_runs_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    net = Net()
    device = torch.device("cuda:0")
    for path in (_script(net, tmp_path), _onnx(net, tmp_path)):
        fields = {**IMAGE, "mean": (0.1, 0.2, 0.3)}
        loaded = load_classifier("net", path, Manifest.model_validate(fields), device=device)
        expected = _load(path, **fields).classifier
        x, targets = torch.rand(3, *SHAPE), Targets.classes(torch.arange(3))
        found = loaded.classifier.gradient(x.to(device), targets.to(device))
        assert loaded.info.device == "cuda:0"
        assert loaded.classifier.neutral(2).device == device
        torch.testing.assert_close(
            found.inputs.cpu(), expected.gradient(x, targets).inputs, rtol=1e-2, atol=1e-3
        )
        (values,) = loaded.classifier.activations(x.to(device), ["relu"])
        assert values.device == device

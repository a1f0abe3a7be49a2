"""From a model file and a manifest to a verified classifier."""

import hashlib
from pathlib import Path

import pytest
import torch
from loading_files import IMAGE, SHAPE, Net, load, onnx_file, script
from onnx import TensorProto, helper
from torch import Tensor, nn

from interpret_server.errors import FailedPrecondition, ModelRejected
from interpret_server.models import onnx as onnx_package
from interpret_server.models.classifier import Capability
from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.lowered import Lowered
from interpret_server.models.manifest import Manifest
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.sources import TorchScriptSource
from interpret_server.models.targets import Targets
from interpret_server.testing.classifiers import classifier


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
    path = script(net, tmp_path)
    loaded = load(path, **IMAGE, labels=tuple("abcde"), version="7", max_batch=9)
    info = loaded.info
    _check_same(loaded, net)
    assert (info.name, info.version, info.format, info.form) == ("net", "7", "torchscript", "graph")
    assert (info.form_reason, info.notes, info.logits_from) == ("", (), "logits")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.size == path.stat().st_size
    assert (info.device, info.precision, info.input_dtype) == ("cpu", "float32", "float32")
    assert (info.input_name, info.input_shape, info.input_layout) == ("x", SHAPE, "CHW")
    assert (info.bounds, info.classes, info.labels) == ((0, 1), 5, tuple("abcde"))
    assert info.capabilities == {
        "gradient",
        "layers",
        "rectifiers",
        "bounds",
        "deterministic",
        "scores",
    }
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
    loaded = load(onnx_file(net, tmp_path), bounds=(0, 1))
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
    loaded = load(onnx_file(net, tmp_path, end=end, output="p"), bounds=(0, 1))
    _check_same(loaded, net)
    assert (loaded.info.logits_from, loaded.info.output_name) == ("softmax", "p")


@pytest.mark.parametrize("reshape", [(-1, 256), (1, 256)])
def test_an_onnx_file_of_one_row_takes_many(tmp_path: Path, reshape: tuple[int, ...]) -> None:
    net = Net()
    loaded = load(onnx_file(net, tmp_path, rows=1, reshape=reshape), bounds=(0, 1))
    _check_same(loaded, net)
    assert loaded.info.verification.batch_sizes == (5, 2)


def test_an_archive_traced_at_one_row_takes_many(tmp_path: Path) -> None:
    class OneRow(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.relu(self.conv(x)).reshape(1, 256))

    net = OneRow()
    loaded = load(script(net, tmp_path, torch.rand(1, *SHAPE)), **IMAGE)
    free = Net()
    free.load_state_dict(net.state_dict())
    _check_same(loaded, free)
    assert "1 row at a time" in loaded.info.form_reason


def test_the_manifests_normalisation_is_part_of_the_model(tmp_path: Path) -> None:
    net = Net()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    loaded = load(onnx_file(net, tmp_path), bounds=(0, 1), mean=mean.tolist(), std=std.tolist())
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(
        loaded.classifier(x), net((x - mean[:, None, None]) / std[:, None, None])
    )
    assert loaded.classifier.centre.flatten().tolist() == pytest.approx(mean.tolist())


def test_float64_files_stay_float64(tmp_path: Path) -> None:
    net = Net().double()
    path = onnx_file(net, tmp_path, element=TensorProto.DOUBLE)
    for loaded in (load(path, bounds=(0, 1)), load(script(net, tmp_path), **IMAGE)):
        x = torch.rand(2, *SHAPE, dtype=torch.float64)
        torch.testing.assert_close(loaded.classifier(x), net(x), rtol=1e-12, atol=1e-12)
        assert loaded.info.precision == loaded.info.input_dtype == "float64"
        assert loaded.info.verification.relative_difference < 1e-12


def test_a_frozen_float64_archive_is_known_by_its_constants(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.freeze(torch.jit.script(Net().double().eval())), str(path))
    assert load(path, **IMAGE).info.precision == "float64"


def test_float16_files_are_served_in_float32(tmp_path: Path) -> None:
    net = Net().half()
    path = onnx_file(net, tmp_path, element=TensorProto.FLOAT16)
    for loaded in (load(path, bounds=(0, 1)), load(script(net, tmp_path), **IMAGE)):
        assert loaded.info.precision == "float32"
        assert any("float16" in note for note in loaded.info.notes)
        assert loaded.classifier(torch.rand(2, *SHAPE)).dtype is torch.float32


def test_a_program_that_branches_on_data_runs_as_its_archive(tmp_path: Path) -> None:
    net = Branching()
    loaded = load(script(net, tmp_path), **IMAGE)
    model, info = loaded.classifier, loaded.info
    assert info.form == "archive"
    assert info.form_reason.startswith("prim::If depends on tensor data")
    assert "It runs 1 row at a time, because a row's values may depend" in info.form_reason
    assert info.capabilities == {"gradient", "rectifiers", "bounds", "deterministic", "scores"}
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
            "LinearRegressor",
            ["logits"],
            ["y"],
            "regressor",
            domain="ai.onnx.ml",
            coefficients=(2.0 * torch.eye(5)).reshape(-1).tolist(),
            targets=5,
        )
    ]
    loaded = load(onnx_file(net, tmp_path, end=end, output="y"), bounds=(0, 1))
    x = torch.rand(5, *SHAPE)
    torch.testing.assert_close(loaded.classifier(x), 2 * net(x))
    assert loaded.info.form == "runtime"
    assert loaded.info.capabilities == {"bounds", "deterministic", "scores"}
    assert "LinearRegressor" in loaded.info.lacking["gradient"]
    assert loaded.info.verification.relative_difference < 1e-6
    model = loaded.classifier
    assert model.lacking[Capability.RECTIFIERS] == model.lacking[Capability.GRADIENT]


def test_a_float16_archive_without_a_graph_keeps_its_precision(tmp_path: Path) -> None:
    net = Branching().half()
    loaded = load(script(net, tmp_path), **IMAGE)
    x = torch.rand(1, *SHAPE)
    assert (loaded.info.form, loaded.info.precision) == ("archive", "float16")
    assert loaded.info.input_dtype == "float32"
    assert loaded.classifier(x).dtype is torch.float32
    torch.testing.assert_close(loaded.classifier(x), net(x.half()).float())


def test_a_random_program_is_served_unverified_with_a_note(tmp_path: Path) -> None:
    info = load(script(Random(), tmp_path), **IMAGE).info
    assert info.verification.reference == "none"
    assert any("another answer each time" in note for note in info.notes)
    assert "another answer each time" in info.lacking["deterministic"]


def test_dropout_left_in_training_mode_is_served_in_its_inference_form(tmp_path: Path) -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(nn.functional.dropout(x, 0.5, True))

    net = Dropping()
    loaded = load(script(net, tmp_path), **IMAGE)
    plain = Net()
    plain.load_state_dict(net.state_dict())
    _check_same(loaded, plain)
    assert loaded.info.verification.reference == "torch.jit"
    assert "deterministic" in loaded.info.capabilities


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
        load(script(Net(), tmp_path), **IMAGE)


def test_an_unforeseen_failure_of_lowering_leaves_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TorchScriptSource, x: Tensor) -> Lowered:
        raise KeyError("internal")

    monkeypatch.setattr(TorchScriptSource, "lower", broken)
    net = Net()
    loaded = load(script(net, tmp_path), **IMAGE)
    _check_same(loaded, net)
    assert loaded.info.form == "archive"
    assert "internal" not in loaded.info.form_reason


def test_without_onnxruntime_a_file_is_verified_by_the_onnx_package_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(path: Path) -> None:
        raise FailedPrecondition("onnxruntime is not installed")

    monkeypatch.setattr(onnx_package, "runtime", absent)
    net = Net()
    loaded = load(onnx_file(net, tmp_path), bounds=(0, 1))
    _check_same(loaded, net)
    assert loaded.info.verification.reference == "onnx.reference"
    assert "not installed" in loaded.info.notes[0]


def test_a_file_that_expects_channels_last_is_known_by_its_shape(tmp_path: Path) -> None:
    class Last(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x.permute(0, 3, 1, 2))

    net = Last()
    loaded = load(script(net, tmp_path), shape=(8, 8, 3), bounds=(0, 1), mean=(0.1, 0.2, 0.3))
    assert loaded.info.input_layout == "HWC"
    x = torch.rand(2, 8, 8, 3)
    torch.testing.assert_close(loaded.classifier(x), net(x - torch.tensor([0.1, 0.2, 0.3])))


@pytest.mark.gpu
def test_a_model_runs_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    net = Net()
    device = torch.device("cuda:0")
    for path in (script(net, tmp_path), onnx_file(net, tmp_path)):
        fields = {**IMAGE, "mean": (0.1, 0.2, 0.3)}
        loaded = load_classifier("net", path, Manifest.model_validate(fields), device=device)
        expected = load(path, **fields).classifier
        x, targets = torch.rand(3, *SHAPE), Targets.classes(torch.arange(3))
        found = loaded.classifier.gradient(x.to(device), targets.to(device))
        assert loaded.info.device == "cuda:0"
        assert loaded.classifier.neutral(2).device == device
        torch.testing.assert_close(
            found.inputs.cpu(), expected.gradient(x, targets).inputs, rtol=1e-2, atol=1e-3
        )
        (values,) = loaded.classifier.activations(x.to(device), ["relu"])
        assert values.device == device

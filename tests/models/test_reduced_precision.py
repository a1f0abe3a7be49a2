"""Matrix products in bfloat16 and TF32: the same as eager autocast, measured, and nowhere else."""

import re
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loading_files import IMAGE, SHAPE, Net, load, onnx_file, script
from torch import Tensor, nn
from torch.nn import functional as F

from interpret_server.engine.isolation import Isolation
from interpret_server.errors import InvalidRequest, ModelRejected
from interpret_server.models.classifier import Classifier
from interpret_server.models.execution import Execution
from interpret_server.models.lowered import Lowered
from interpret_server.models.manifest import Precision
from interpret_server.models.products import ProductSettings
from interpret_server.models.reduced import Cost, check_precision, reduce_precision
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.sources import TorchScriptSource
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing.classifiers import classifier

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = Precision.BFLOAT16
_OPERATIONS = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn,  # type: ignore[attr-defined]
)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm(self.conv(x)))


def residual() -> nn.Module:
    """Convolutions, batch norm, a sum and pooling."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), _Block()),
        *(nn.MaxPool2d(2), _Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 2)
    return network.eval().requires_grad_(False)


class Attending(nn.Module):
    """Attention that is written out, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.mixed = nn.Linear(8, 48), nn.Linear(16, 16)
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.taken(x.flatten(1, 2)).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1)
        return self.last(F.gelu(self.norm(self.mixed(weights @ v))).mean(1))


def attending() -> nn.Module:
    return Attending().eval().requires_grad_(False)


NETWORKS: list[Callable[[], nn.Module]] = [residual, attending]


def reduced(network: nn.Module, execution: Execution = Execution.EXACT) -> Classifier:
    model = classifier(network, SHAPE)
    model.execution, model.precision = execution, BF16
    return model


class Autocast(nn.Module):
    """The eager network in bfloat16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(x)
        return logits.float()


def logits_and_gradient(
    form: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = form(leaf)
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), leaf)
    return logits.detach(), gradient


@pytest.mark.parametrize("network", NETWORKS)
def test_the_canonical_form_has_the_bits_of_eager_autocast(network: Callable[[], nn.Module]):
    eager = network()
    model, x, labels = reduced(eager), torch.rand(5, *SHAPE), torch.arange(5)
    logits, gradient = logits_and_gradient(Autocast(eager), x, labels)
    found = model.gradient(x, Targets.classes(labels))
    assert found.logits is not None
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.inputs, gradient)
    assert torch.equal(model.module(x), logits)
    assert (found.logits.dtype, found.inputs.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(logits, eager(x))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("execution", [Execution.AUTO, Execution.FAST])
def test_plans_are_as_near_to_exact_arithmetic_as_eager_autocast(
    network: Callable[[], nn.Module], execution: Execution
):
    eager, x, labels = network(), torch.rand(32, *SHAPE), torch.arange(32) % 5
    found = reduced(eager, execution).gradient(x, Targets.classes(labels))
    rounded = logits_and_gradient(Autocast(eager), x, labels)
    exact = logits_and_gradient(eager.double(), x.double(), labels)
    assert found.logits is not None
    for ours, theirs, truth in zip((found.logits, found.inputs), rounded, exact, strict=True):
        noise = (theirs - truth).norm()
        assert 0 < noise < 0.5 * truth.norm()
        assert (ours - truth).norm() <= 1.5 * noise


@pytest.mark.parametrize("network", NETWORKS)
def test_the_weights_stay_as_they_are(network: Callable[[], nn.Module]):
    eager, x = network(), torch.rand(2, *SHAPE)
    model = classifier(eager, SHAPE)
    before = model(x)
    model.precision = BF16
    assert not torch.equal(model(x), before)
    model.precision = Precision.FLOAT32
    assert torch.equal(model(x), before)
    assert {tensor.dtype for tensor in model.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("rule", [ReluRule.GUIDED, ReluRule.DECONVNET])
def test_rectifier_rules_equal_captum_on_the_eager_network_under_autocast(rule: ReluRule):
    from captum.attr import Deconvolution, GuidedBackprop

    eager, x, labels = residual(), torch.rand(4, *SHAPE), torch.tensor([3, 1, 0, 2])
    found = reduced(eager).gradient(x, Targets.classes(labels), rule).inputs
    peer = GuidedBackprop if rule is ReluRule.GUIDED else Deconvolution
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        expected = peer(Autocast(eager)).attribute(x.clone().requires_grad_(), target=labels)
    assert torch.equal(found, expected)
    assert not torch.equal(found, reduced(eager).gradient(x, Targets.classes(labels)).inputs)


def test_layers_and_their_targets_are_float32_with_the_bits_of_autocast():
    eager, x = residual(), torch.rand(3, *SHAPE)
    model, cut = reduced(eager), Autocast(eager[:4])
    (values,) = model.activations(x, ["3.relu"])
    assert values.dtype is torch.float32
    assert torch.equal(values, cut(x))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cut(leaf)[:, 2].mean(dim=(1, 2)).sum(), leaf)
    targets = Targets(TargetKind.CHANNEL, torch.full((3, 1), 2), "3.relu")
    assert torch.equal(model.gradient(x, targets).inputs, expected)


def test_a_hooked_network_computes_in_bfloat16_too():
    eager, x = residual(), torch.rand(2, *SHAPE)
    model, seen = reduced(eager), []
    layer = model.module.body.get_submodule("3.conv")
    handle = layer.register_forward_hook(lambda module, inputs, value: seen.append(value.dtype))
    hooked = model(x)
    handle.remove()
    assert seen == [torch.bfloat16]
    assert torch.equal(hooked, Autocast(eager)(x))


def test_autocast_ends_with_the_call_and_also_with_its_failure():
    eager, x = residual(), torch.rand(2, *SHAPE)
    model, other = reduced(eager), classifier(eager, SHAPE)
    before = other(x)
    model(x)
    with pytest.raises(RuntimeError):
        model(x[:, :2])
    model.gradient(x, Targets.classes(torch.zeros(2)))
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(other(x), before)


class Branching(Net):
    """Asks the data which way to go, so that the archive itself runs."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = x * 2
        return self.scores(x)


def test_an_archive_that_runs_itself_computes_in_bfloat16(tmp_path: Path):
    net, x, labels = Branching().requires_grad_(False), torch.rand(3, *SHAPE), torch.arange(3)
    path = script(net, tmp_path)
    loaded, plain = load(path, **IMAGE, precision="bfloat16"), load(path, **IMAGE)
    assert (loaded.info.form, loaded.info.precision) == ("archive", "bfloat16")
    found = loaded.classifier.gradient(x, Targets.classes(labels))
    alone = [logits_and_gradient(Autocast(net), x[i : i + 1], labels[i : i + 1]) for i in range(3)]
    assert found.logits is not None
    assert torch.equal(found.logits, torch.cat([logits for logits, _ in alone]))
    assert torch.equal(found.inputs, torch.cat([gradient for _, gradient in alone]))
    torch.testing.assert_close(plain.classifier(x), torch.cat([net(row[None]) for row in x]))


@pytest.mark.parametrize("rows", ["N", 1])
def test_an_onnx_file_computes_in_bfloat16(tmp_path: Path, rows: str | int):
    net, x = Net().requires_grad_(False), torch.rand(4, *SHAPE)
    loaded = load(onnx_file(net, tmp_path, rows=rows), bounds=(0, 1), precision="bfloat16")
    exact, noise = net(x), (Autocast(net)(x) - net(x)).norm()
    assert loaded.info.verification.relative_difference < 1e-5
    assert 0 < (loaded.classifier(x) - exact).norm() <= 1.5 * noise


def test_the_cost_is_measured_on_the_given_rows():
    eager = residual()
    batches = [torch.rand(5, *SHAPE), torch.rand(6, *SHAPE)]
    model = classifier(eager, SHAPE)
    model.execution = Execution.EXACT
    (note,) = reduce_precision(model, BF16, batches)
    worst = scale = 0.0
    changed, relative, cosines = 0, [], []
    for x in batches:
        winners = eager(x).argmax(1)
        exact, gradients = logits_and_gradient(eager, x, winners)
        ours, theirs = logits_and_gradient(Autocast(eager), x, winners)
        worst = max(worst, float((ours.double() - exact.double()).abs().max()))
        scale = max(scale, float(exact.abs().max()))
        changed += int((ours.argmax(1) != winners).sum())
        for a, b in zip(theirs.double().flatten(1), gradients.double().flatten(1), strict=True):
            relative.append(float((a - b).norm() / b.norm()))
            cosines.append(float(a @ b / (a.norm() * b.norm())))
    cost = Cost(11, worst / scale, changed, tuple(relative), min(cosines))
    assert note == cost.told(BF16)
    assert 0 < cost.logits < 0.05
    assert 0.5 < cost.cosine < 1


def test_a_changed_class_is_counted():
    """The two logits differ by less than bfloat16 can hold."""
    network = nn.Linear(2, 2, bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor([[1.0, 1.0], [1.001, 1.0]]))
    (note,) = reduce_precision(classifier(network, (2,)), BF16, [torch.rand(6, 2) + 0.1])
    assert "the predicted class of 6 of 6 rows" in note


def test_a_served_model_tells_what_its_precision_costs(tmp_path: Path):
    path = script(Net(), tmp_path)
    info, plain = load(path, **IMAGE, precision="bfloat16").info, load(path, **IMAGE).info
    assert (info.precision, plain.precision) == ("bfloat16", "float32")
    assert (info.input_dtype, info.manifest.precision) == ("float32", BF16)
    assert info.verification == plain.verification
    (note,) = set(info.notes) - set(plain.notes)
    assert re.search(r"in bfloat16; .* of 7 rows, and the input gradient", note)


def test_a_wrong_graph_is_refused_as_strictly_as_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lower = TorchScriptSource.lower

    def wrong(self: TorchScriptSource, x: Tensor) -> Lowered:
        lowered = lower(self, x)
        for parameter in lowered.graph.parameters():
            parameter.data = parameter.data * 1.001  # bfloat16 would round that away
        return lowered

    monkeypatch.setattr(TorchScriptSource, "lower", wrong)
    with pytest.raises(ModelRejected, match="differs from the file's own execution"):
        load(script(Net(), tmp_path), **IMAGE, precision="bfloat16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_file_of_another_type_is_refused(tmp_path: Path, dtype: torch.dtype):
    net = Net().to(dtype)
    path = script(net, tmp_path)
    load(path, **IMAGE)
    with pytest.raises(InvalidRequest, match=r"manifest\.precision: .* another type than float32"):
        load(path, **IMAGE, precision="bfloat16")


def test_tf32_is_refused_on_the_cpu(tmp_path: Path):
    with pytest.raises(InvalidRequest, match=r"manifest\.precision: tf32 .* runs on cpu"):
        load(script(Net(), tmp_path), **IMAGE, precision="tf32")
    check_precision(Precision.TF32, CUDA, "graph", [torch.float32])


def test_a_model_that_onnxruntime_runs_is_refused():
    with pytest.raises(InvalidRequest, match=r"manifest\.precision: .* onnxruntime"):
        check_precision(BF16, CPU, "runtime", [torch.float32])


def test_logits_that_bfloat16_cannot_hold_are_refused(tmp_path: Path):
    net = Net().requires_grad_(False)
    net.last.weight.mul_(1e-3)
    net.last.weight[2, 7] = torch.finfo(torch.float32).max  # rounds to infinity
    net.last.bias.fill_(1.0)
    net.conv.bias.zero_()
    net.conv.weight.abs_().mul_(1e-3)
    path = script(net, tmp_path)
    load(path, **IMAGE)
    with pytest.raises(InvalidRequest, match=r"manifest\.precision: .* NaN or infinite"):
        load(path, **IMAGE, precision="bfloat16")


class Mixing(Net):
    """Writes what a convolution gives into another tensor, which autocast does not convert."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(len(x), 4, 8, 8)
        y = torch.index_put(y, [torch.arange(len(x))], self.conv(x))
        return self.last(self.relu(y).flatten(1))


def test_a_network_that_does_not_run_in_bfloat16_is_refused(tmp_path: Path):
    path = script(Mixing(), tmp_path)
    load(path, **IMAGE)
    with pytest.raises(InvalidRequest, match=r"manifest\.precision: .* does not run in it"):
        load(path, **IMAGE, precision="bfloat16")


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x + torch.rand_like(x))


def test_the_cost_of_a_random_program_is_not_told(tmp_path: Path):
    info = load(script(Random(), tmp_path), **IMAGE, precision="bfloat16").info
    assert any("was not measured, since the model's answers vary" in note for note in info.notes)


def settings() -> list[str]:
    return [operation.fp32_precision for operation in _OPERATIONS]


def test_tf32_is_set_while_a_model_computes_and_then_as_before():
    products, outside = ProductSettings(), settings()
    with products.held(CUDA, Precision.TF32):
        assert settings() == ["tf32"] * 3
    assert settings() == outside
    for precision in (Precision.FLOAT32, BF16):
        with products.held(CUDA, precision):
            assert settings() == ["ieee"] * 3
    with pytest.raises(ZeroDivisionError), products.held(CUDA, Precision.TF32):
        raise ZeroDivisionError
    assert settings() == outside
    with products.held(CPU, Precision.TF32):
        assert settings() == outside


def test_models_with_different_settings_wait_for_each_other():
    products, outside, wrong = ProductSettings(), settings(), []

    def compute(precision: Precision) -> None:
        expected = ["tf32" if precision is Precision.TF32 else "ieee"] * 3
        for _ in range(100):
            with products.held(CUDA, precision):
                for _ in range(3):
                    if settings() != expected:
                        wrong.append(precision)
                    time.sleep(0)  # lets another thread in

    order = (Precision.TF32, Precision.FLOAT32) * 2
    threads = [threading.Thread(target=compute, args=(precision,)) for precision in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert settings() == outside


def test_tf32_is_off_while_a_group_lets_others_compute(monkeypatch: pytest.MonkeyPatch):
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    outside, isolation = settings(), Isolation(CUDA, Precision.TF32)
    other = Isolation(CUDA, Precision.FLOAT32)
    with isolation.active():
        assert settings() == ["tf32"] * 3
        with isolation.suspended():
            assert settings() == outside
            with other.active():
                assert settings() == ["ieee"] * 3
        assert settings() == ["tf32"] * 3
    assert settings() == outside

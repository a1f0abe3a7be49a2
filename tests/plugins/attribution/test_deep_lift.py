"""DeepLIFT: closed forms, Captum where it is right and where it is not, targets, warnings."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import DeepLift as CaptumDeepLift
from torch import Tensor, nn
from torch.nn import functional as F

from interpret_plugins.attribution.deep_lift import DeepLift, DeepLiftParams, DeepLiftResult
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

CLASSES = torch.tensor([2, 0, 1])


class Recorder(Job):
    """Remembers steps and warnings."""

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows
        self.steps: list[int] = []
        self.warnings: list[tuple[list[bool], str]] = []

    def track(self, total: int) -> Iterator[int]:
        self.steps.append(total)
        yield from range(total)

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((rows.tolist(), message))


def run(
    model: Classifier,
    x: Tensor,
    targets: Targets,
    job: Job | None = None,
    start: Tensor | None = None,
    **params: object,
) -> DeepLiftResult:
    made = DeepLiftParams.model_validate(params)
    plugin = DeepLift()
    plugin.check(model, made)
    tensors = {} if start is None else {"baseline": start}
    return plugin.run(model, Batch(x, targets, (0,) * len(x), tensors), made, job or Job())


def captum(module: nn.Module, x: Tensor, start: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        found: Tensor = CaptumDeepLift(module).attribute(x, start, target=CLASSES)
    return found.detach()


def network(*inner: nn.Module, size: int = 6) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), *inner, nn.Linear(size, 3)).eval()


def convolutional(*pool: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        *pool,
        nn.Conv2d(5, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 if pool else 144, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    ).eval()


def test_a_linear_classifier_is_attributed_exactly() -> None:
    layer = nn.Linear(6, 3).double()
    x, base = torch.rand(2, 3, 6, dtype=torch.float64)
    result = run(classifier(layer, (6,)), x, Targets.classes(CLASSES), start=base)
    torch.testing.assert_close(result.attributions, layer.weight[CLASSES] * (x - base))
    torch.testing.assert_close(result.logits, layer(x))
    assert result.convergence_delta.abs().max() < 1e-14


@pytest.mark.parametrize(
    "module",
    [
        convolutional(),
        network(nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid()).double(),
        network(nn.ELU(), nn.Linear(6, 6), nn.LeakyReLU()),
    ],
    ids=["relu", "sigmoid", "elu"],
)
def test_equals_captum_on_modules_that_it_knows(module: nn.Module) -> None:
    shape = (2, 8, 8) if isinstance(module[0], nn.Conv2d) else (12,)
    x, base = torch.rand(2, 3, *shape, dtype=next(module.parameters()).dtype)
    expected = captum(module, x, base)
    found = run(classifier(module, shape), x, Targets.classes(CLASSES), start=base).attributions
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


class Functional(nn.Module):
    """A rectifier that is called as a function, which no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(2 * self.first(x)))


class Gate(Functional):
    """A product of two rectifiers, each a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.one, self.two = nn.Linear(12, 6), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.one(self.first(x)) * self.two(self.second(x)))


@pytest.mark.parametrize(
    "module",
    [
        Functional(),
        Gate(),
        network(nn.GELU()),
        network(nn.ReLU6()),
        network(nn.LayerNorm(6)),
        network(nn.Softmax(1)),
        convolutional(nn.MaxPool2d(2)),
    ],
    ids=["functional", "product", "gelu", "relu6", "layer_norm", "softmax", "max_pooling"],
)
def test_is_complete_where_captum_is_not(module: nn.Module) -> None:
    torch.manual_seed(4)
    shape = (2, 8, 8) if isinstance(module, nn.Sequential) and len(module) > 8 else (12,)
    x, base = torch.randn(2, 3, *shape)
    model, targets = classifier(module, shape), Targets.classes(CLASSES)
    expected = model.objective(x, targets)[0] - model.objective(base, targets)[0]
    size = float(expected.abs().max())
    theirs = captum(module, x, base).flatten(1).sum(1) - expected
    assert float(theirs.abs().max()) > 1e-2 * size
    job = Recorder()
    result = run(model, x, targets, job, start=base)
    ours = result.attributions.flatten(1).sum(1) - expected
    assert float(ours.abs().max()) < 2e-6 * size
    torch.testing.assert_close(result.convergence_delta, ours, rtol=0, atol=2e-6 * size)
    assert not job.warnings


def smooth() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(),
        nn.Linear(8, 3),
    ).double()  # fmt: skip


NONE = torch.zeros(3, 0, dtype=torch.int64)
TARGETS = {
    "class": Targets.classes(CLASSES),
    "neuron": Targets(TargetKind.NEURON, torch.tensor([[1, 0, 1], [3, 2, 0], [0, 1, 1]]), "1"),
    "channel": Targets(TargetKind.CHANNEL, torch.tensor([[3], [0], [1]]), "2"),
    "layer": Targets(TargetKind.LAYER, NONE, "4"),
    "direction": Targets(
        TargetKind.DIRECTION, NONE, "5", torch.arange(24.0, dtype=torch.float64).reshape(3, 8)
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_attributions_sum_to_the_difference_of_any_target(kind: str) -> None:
    model = classifier(smooth(), (2, 6, 6), bounds=(-2, 2))
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), TARGETS[kind]
    result = run(model, x, targets, baseline="lower")
    low = torch.full_like(x, -2)
    expected = model.objective(x, targets)[0] - model.objective(low, targets)[0]
    torch.testing.assert_close(result.attributions.sum((1, 2, 3)), expected)
    assert result.convergence_delta.abs().max() < 1e-12
    assert (result.logits is None) == (kind != "class")


def test_a_pass_takes_as_many_rows_as_fit_and_changes_nothing() -> None:
    model = classifier(smooth(), (2, 6, 6))
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    whole = run(model, x, TARGETS["class"])
    for limit, passes in ((1, 3), (2, 3), (4, 2), (6, 1)):
        job = Recorder(limit)
        found = run(model, x, TARGETS["class"], job)
        assert job.steps == [passes]
        torch.testing.assert_close(found.attributions, whole.attributions, rtol=1e-12, atol=1e-14)


def test_a_bound_that_is_not_stated_is_refused_as_baseline() -> None:
    model = classifier(nn.Linear(5, 2), (5,), bounds=None)
    with pytest.raises(InvalidRequest, match="lower bound") as caught:
        run(model, torch.rand(1, 5), Targets.classes(torch.tensor([0])), baseline="lower")
    assert caught.value.violations[0].field == "params.baseline"


class Ranked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.gather(1, x.argsort(1))[:, :2] * torch.tensor([0.0, 1.0]) + x[:, :2]


def test_what_no_multiplier_tells_is_warned_about() -> None:
    model = classifier(Ranked(), (4,))
    x = torch.tensor([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])
    start = torch.tensor([[0.1, 0.2, 1.5, 1.6]]).expand(2, 4)
    job = Recorder()
    result = run(model, x, Targets.classes(torch.tensor([1, 1])), job, start=start)
    assert (
        float(result.convergence_delta[0].abs()) < 1e-6 < float(result.convergence_delta[1].abs())
    )
    ((rows, message),) = job.warnings
    assert rows == [False, True]
    assert message.endswith(
        "what gather picks by position differs between the two, and no multiplier tells that"
    )
    same: Any = Recorder()
    run(model, x, Targets.classes(torch.tensor([1, 1])), same, start=x)
    assert [message.split(":")[0] for _, message in same.warnings] == ["every attribution is zero"]

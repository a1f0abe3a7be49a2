"""Saliency is the gradient: closed forms, finite differences, reductions, warnings."""

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attribution.saliency import Saliency, SaliencyParams, SaliencyResult
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier


def run(
    model: Classifier, x: Tensor, targets: Targets, job: Job | None = None, **params: object
) -> SaliencyResult:
    made = SaliencyParams.model_validate(params)
    Saliency().check(model, made)
    return Saliency().run(model, Batch(x, targets, (0,) * len(x)), made, job or Job())


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 3)
    ).double()


def test_saliency_of_a_linear_classifier_is_its_weights() -> None:
    layer = nn.Linear(6, 3).double()
    model = classifier(layer, (6,))
    labels = torch.tensor([0, 2, 1, 2])
    x = torch.rand(4, 6, dtype=torch.float64)
    signed = run(model, x, Targets.classes(labels), absolute=False)
    torch.testing.assert_close(signed.attributions, layer.weight[labels])
    torch.testing.assert_close(signed.logits, layer(x))
    absolute = run(model, x, Targets.classes(labels))
    torch.testing.assert_close(absolute.attributions, layer.weight[labels].abs())


TARGETS = {
    "class": (Targets.classes(torch.tensor([2, 0])), lambda v: v[0][[0, 1], [2, 0]]),
    "neuron": (
        Targets(TargetKind.NEURON, torch.tensor([[1, 0, 1], [4, 1, 0]]), "2"),
        lambda v: v[1][[0, 1], [1, 4], [0, 1], [1, 0]],
    ),
    "channel": (
        Targets(TargetKind.CHANNEL, torch.tensor([[3], [0]]), "2"),
        lambda v: v[1][[0, 1], [3, 0]].mean((1, 2)),
    ),
    "layer": (
        Targets(TargetKind.LAYER, torch.zeros(2, 0, dtype=torch.int64), "2"),
        lambda v: v[1].mean((1, 2, 3)),
    ),
    "direction": (
        Targets(
            TargetKind.DIRECTION,
            torch.zeros(2, 0, dtype=torch.int64),
            "2",
            torch.arange(10.0, dtype=torch.float64).reshape(2, 5),
        ),
        lambda v: (v[1].mean((2, 3)) * torch.arange(10.0).reshape(2, 5)).sum(1),
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_saliency_of_any_target_is_its_central_difference(kind: str) -> None:
    module = network()
    model = classifier(module, (3, 6, 6))
    targets, value = TARGETS[kind]
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    result = run(model, x, targets, absolute=False)
    step = 1e-5
    for index in range(0, 3 * 36, 7):
        moved = torch.zeros(3 * 36, dtype=torch.float64)
        moved[index] = step
        delta = moved.reshape(3, 6, 6)
        values = [value((module(x + d), module[:3](x + d))) for d in (delta, -delta)]
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(
            result.attributions.flatten(1)[:, index], slope, rtol=1e-6, atol=1e-8
        )
    assert (result.logits is None) == (kind != "class")


@pytest.mark.parametrize(("layout", "axis"), [("CHW", 1), ("HWC", 3)])
def test_channels_are_reduced_along_the_layouts_axis(layout: str, axis: int) -> None:
    shape = (3, 6, 6) if layout == "CHW" else (6, 6, 3)
    model = classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(108, 2), nn.Tanh()), shape, input_layout=layout
    )
    x, targets = torch.rand(2, *shape), Targets.classes(torch.tensor([0, 1]))
    signed = run(model, x, targets, absolute=False).attributions
    largest = run(model, x, targets, channels="max").attributions
    assert largest.shape == (2, 6, 6)
    assert torch.equal(largest, signed.abs().amax(axis))
    total = run(model, x, targets, channels="sum", absolute=False).attributions
    assert torch.equal(total, signed.sum(axis))


def test_channels_of_an_input_without_channels_are_refused() -> None:
    model = classifier(nn.Linear(6, 3), (6,))
    with pytest.raises(InvalidRequest, match="no channel axis") as caught:
        run(model, torch.rand(1, 6), Targets.classes(torch.tensor([0])), channels="max")
    assert caught.value.violations[0].field == "params.channels"


class Recorder(Job):
    def __init__(self) -> None:
        self.warnings: list[tuple[list[bool], str]] = []

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((rows.tolist(), message))


def test_rows_with_a_gradient_of_zero_are_warned_about() -> None:
    model = classifier(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), (4,), bounds=(-1, 1))
    x = torch.tensor([[0.5] * 4, [-0.5] * 4])
    job = Recorder()
    result = run(model, x, Targets.classes(torch.tensor([0, 1])), job)
    assert not result.attributions[1].any()
    assert [rows for rows, _ in job.warnings] == [[False, True]]
    assert "gradient is zero" in job.warnings[0][1]


@pytest.mark.parametrize("bounds", [(0, 1), None])
def test_rows_with_a_saturated_gradient_are_warned_about(
    bounds: tuple[float, float] | None,
) -> None:
    class Gate(nn.Module):
        """Flat but for a hair's breadth around a half, and linear in the second value."""

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(40 * (x[:, 0] - 0.5)) * 3
            return torch.stack([gate, gate + 1, 0 * gate], 1) + 1e-7 * x[:, 1:]

    model, job = classifier(Gate(), (2,), bounds=bounds), Recorder()
    x = torch.tensor([[1.0, 0.5], [0.5, 0.5], [0.0, 0.5]])
    targets = Targets.classes(torch.tensor([0, 0, 0]))
    found = run(model, x, targets, job).attributions
    assert found.any(1).all()
    assert [rows for rows, _ in job.warnings] == [[True, False, True]]
    assert "saturated" in job.warnings[0][1]


def test_a_constant_of_all_logits_makes_no_gradient_saturated() -> None:
    layer = nn.Linear(6, 3)
    nn.init.constant_(layer.bias, 1e5)
    model, job = classifier(layer, (6,), bounds=(0, 1)), Recorder()
    run(model, torch.rand(4, 6), Targets.classes(torch.tensor([0, 2, 1, 2])), job)
    assert not job.warnings

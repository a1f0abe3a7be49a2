"""Inpainting: known values to the bit, completions against closed forms."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.synthesis.inpaint import Inpaint, InpaintParams, InpaintResult
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Targets
from interpret_server.testing import classifier, conformance
from tests.plugins.metrics.judging import Recorder


def _run(
    model: Classifier,
    inputs: Tensor,
    mask: Tensor,
    classes: list[int] | None = None,
    seeds: tuple[int, ...] | None = None,
    **params: object,
) -> InpaintResult:
    rows = len(inputs)
    targets = Targets.none(rows) if classes is None else Targets.classes(torch.tensor(classes))
    batch = Batch(inputs, targets, seeds or tuple(range(rows)), {"mask": mask})
    made = InpaintParams.model_validate(params)
    return Inpaint().run(model, batch, made, Recorder())


def _images(bounds: tuple[float, float] | None = (-1.0, 3.0)) -> Classifier:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return classifier(network, (2, 6, 6), bounds=bounds, input_layout="CHW")


@pytest.mark.parametrize("method", ["langevin", "gradient"])
@pytest.mark.parametrize("start", ["neutral", "noise", "inputs"])
def test_known_values_are_kept_to_the_bit(method: str, start: str) -> None:
    model, x = _images(), torch.rand(3, 2, 6, 6) * 6 - 2  # some beyond the bounds
    mask = (torch.rand(3, 2, 6, 6) < 0.4).float()
    result = _run(model, x, mask, [0, 1, 2], method=method, start=start, steps=8)
    assert torch.equal(result.images[mask == 0], x[mask == 0])
    filled = result.images[mask == 1]
    assert not torch.equal(filled, x[mask == 1])
    assert -1 <= filled.min() <= filled.max() <= 3


def _plane() -> Classifier:
    return classifier(nn.Linear(4, 2).double(), (4,), bounds=None)


def test_the_gradient_completes_a_gaussian_field_by_its_conditional_mean() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    model = classifier(network, (1, 3, 4), bounds=None, input_layout="CHW")
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    mask = torch.zeros_like(x)
    mask[:, :, 1:, 1:3] = 1
    result = _run(model, x, mask, method="gradient", steps=1500, rate=0.01)

    # the covariance by the prior's own score, which is linear: score = -precision z
    from interpret_plugins.priors.smoothness import Smoothness, SmoothnessParams
    from interpret_server.plugin import Job

    eye = torch.eye(12, dtype=torch.float64).view(12, 1, 3, 4)
    batch = Batch(eye, Targets.none(12), tuple(range(12)))
    precision = -Smoothness().run(model, batch, SmoothnessParams(), Job()).score.view(12, 12)
    hidden = mask[0].flatten() == 1
    known = x.view(2, 12)[:, ~hidden].T
    expected = -torch.linalg.solve(
        precision[hidden][:, hidden], precision[hidden][:, ~hidden] @ known
    )
    torch.testing.assert_close(result.images.view(2, 12)[:, hidden].T, expected, rtol=0, atol=1e-4)


def test_metropolis_completions_follow_the_conditional_law() -> None:
    rows = 300
    model = _plane()
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()
    x = torch.full((rows, 4), 0.7, dtype=torch.float64)
    mask = torch.tensor([1.0, 0, 0, 1]).double().expand(rows, 4)
    result = _run(
        model,
        x,
        mask,
        [0] * rows,
        priors=[{"plugin": "gaussian", "params": {"std": 1.0}}],
        step_size=1.2,
        steps=40,
        metropolis=True,
    )
    filled = result.images[:, [0, 3]].flatten()
    assert filled.mean().item() == pytest.approx(0, abs=4 / 600**0.5)
    assert filled.var().item() == pytest.approx(1, abs=4 * (2 / 600) ** 0.5)
    assert result.acceptance_rate is not None
    assert 0.5 < result.acceptance_rate.mean().item() < 1


def test_a_class_decides_the_completion(
    digit_network: nn.Module, digit_images: tuple[Tensor, Tensor]
) -> None:
    model = classifier(digit_network, (1, 8, 8), input_layout="CHW")
    x = digit_images[0][:1].expand(10, 1, 8, 8)
    mask = torch.zeros_like(x)
    mask[..., 4:] = 1
    strong = {"method": "gradient", "steps": 150, "condition_weight": 30.0}
    result = _run(model, x, mask, list(range(10)), **strong)
    assert (result.original.argmax(1) == 0).all()
    assert (result.logits.argmax(1) == torch.arange(10)).sum() >= 8
    assert torch.equal(result.images[..., :4], x[..., :4])


def test_without_a_target_the_classifier_says_nothing() -> None:
    model, x = _images(), torch.rand(2, 2, 6, 6)
    mask = torch.zeros_like(x)
    mask[..., 2:4] = 1
    alone = _run(model, x, mask, steps=20)
    assert not alone.condition.any()
    silent = _run(model, x, mask, [1, 2], condition_weight=0.0, steps=20)
    torch.testing.assert_close(alone.images, silent.images)


def test_rows_are_independent_and_seeds_decide() -> None:
    model, x = _images(), torch.rand(2, 2, 6, 6)
    mask = torch.ones_like(x)
    together = _run(model, x, mask, [0, 1], (5, 6), steps=15).images
    alone = _run(model, x[1:], mask[1:], [1], (6,), steps=15).images
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert not torch.allclose(_run(model, x[1:], mask[1:], [1], (7,), steps=15).images, alone)


def test_a_mask_of_other_values_is_refused() -> None:
    x = torch.rand(1, 2, 6, 6)
    with pytest.raises(InvalidRequest, match="0 or 1") as caught:
        _run(_images(), x, torch.full_like(x, 0.5), [0])
    assert caught.value.violations[0].field == "tensors.mask"


def test_metropolis_is_for_samples() -> None:
    with pytest.raises(ValidationError):
        InpaintParams.model_validate({"method": "gradient", "metropolis": True})


def _half(model: Classifier, rows: int) -> dict[str, Any]:
    mask = torch.zeros_like(model.neutral(rows))
    mask.flatten(1)[:, ::2] = 1
    return {"mask": mask}


@pytest.mark.parametrize("method", ["langevin", "gradient"])
def test_keeps_the_contract(method: str) -> None:
    conformance(Inpaint, params={"steps": 3, "method": method}, tensors=_half)

"""Random noise in a ball or box."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.random_noise import RandomNoise
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

SIZE = 12
CASES = [(norm, drawn) for norm in ("linf", "l2", "l1") for drawn in ("uniform", "gaussian")]


def linear(bias: float = 0.3) -> Classifier:
    layer = nn.Linear(SIZE, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(SIZE), torch.ones(SIZE)]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return classifier(layer, (SIZE,), bounds=(-1.0, 1.0))


class Origin(nn.Module):
    """Class 0 at the origin alone."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.abs().sum(1)
        return torch.stack([0 * size + 1e-6, size], 1)


def attack(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    tensors: dict[str, Tensor] | None = None,
    **params: Any,
) -> AttackResult:
    made = RandomNoise.params_type.model_validate(params)
    batch = Batch(x, Targets.classes(labels), tuple(range(len(x))), tensors or {})
    return RandomNoise().run(model, batch, made, Job())


@pytest.mark.parametrize(("norm", "distribution"), CASES)
def test_draws_stay_in_the_ball_and_gaussian_ones_lie_on_its_surface(
    norm: str, distribution: str
) -> None:
    model, x = classifier(Origin(), (SIZE,), bounds=(-1.0, 1.0)), torch.zeros(20, SIZE)
    labels = torch.zeros(20, dtype=torch.int64)
    result = attack(model, x, labels, norm=norm, epsilon=0.3, distribution=distribution)
    size = getattr(result, f"distance_{norm}")
    assert result.success.all()
    assert (size <= 0.3).all()
    if distribution == "gaussian":
        torch.testing.assert_close(size, torch.full_like(size, 0.3), rtol=1e-5, atol=0)
    assert (result.queries == 3).all()


@pytest.mark.parametrize(("norm", "distribution"), CASES)
def test_success_is_only_beyond_the_boundary_and_ends_the_draws(
    norm: str, distribution: str
) -> None:
    model, x = linear(), torch.zeros(40, SIZE)
    labels = torch.ones(40, dtype=torch.int64)
    dual = {"linf": SIZE, "l2": SIZE**0.5, "l1": 1.0}[norm]
    params = {"norm": norm, "distribution": distribution, "samples": 200}
    near = attack(model, x, labels, epsilon=0.999 * 0.3 / dual, **params)
    assert not near.success.any()
    assert (near.queries == 202).all()
    far = attack(model, x, labels, epsilon=3 * 0.3 / dual, **params)
    assert far.success.any()
    assert (far.queries[far.success] < 202).any()
    with torch.no_grad():
        assert torch.equal(model(far.adversarial).argmax(1) == 0, far.success)


def test_a_box_is_filled_uniformly() -> None:
    model, x = classifier(Origin(), (SIZE,), bounds=(-1.0, 1.0)), torch.zeros(400, SIZE)
    labels = torch.zeros(400, dtype=torch.int64)
    box = {"lower": torch.full_like(x, -0.2), "upper": torch.full_like(x, 0.6)}
    found = attack(model, x, labels, box, samples=1).adversarial
    quantiles = found.flatten().sort().values
    expected = torch.linspace(-0.2, 0.6, len(quantiles))
    assert float((quantiles - expected).abs().max()) < 0.03
    with pytest.raises(InvalidRequest, match=r"params\.distribution"):
        attack(model, x, labels, box, distribution="gaussian")

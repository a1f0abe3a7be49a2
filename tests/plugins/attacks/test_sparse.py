"""Attacks that change few values: the L0 ball, of values and of pixels."""

import pytest
import torch
from attack_networks import predicted
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.norms import L0
from interpret_plugins.attacks.pgd import PGD, PGDParams
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier


def network(layout: str = "CHW") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 4))
    shape = (3, 4, 4) if layout == "CHW" else (4, 4, 3)
    return classifier(module, shape, bounds=(0.0, 1.0), input_layout=layout)


def pgd(model: Classifier, x: Tensor, labels: Tensor, **params: object) -> AttackResult:
    made = PGDParams.model_validate({"norm": "l0"} | params)
    PGD().check(model, made)
    batch = Batch(x, Targets.classes(labels), tuple(range(len(x))))
    return PGD().run(model, batch, made, Job())


@pytest.mark.parametrize("targeted", [False, True])
def test_no_more_values_change_than_asked_for(targeted: bool) -> None:
    model, x = network(), torch.rand(16, 3, 4, 4)
    labels = model(x).topk(2).indices[:, int(targeted)]
    result = pgd(model, x, labels, epsilon=4, targeted=targeted)
    changed = (result.adversarial != x).flatten(1).sum(1)
    assert int(changed.max()) <= 4
    again = predicted(model, result.adversarial)
    assert torch.equal(result.success, (again == labels) if targeted else (again != labels))
    assert result.success.any()
    assert 0 <= float(result.adversarial.min()) <= float(result.adversarial.max()) <= 1


@pytest.mark.parametrize(("layout", "axis"), [("CHW", 1), ("HWC", 3)])
def test_a_pixel_counts_once_for_all_its_channels(layout: str, axis: int) -> None:
    model = network(layout)
    x = torch.rand(16, *model.input_shape)
    labels = predicted(model, x)
    result = pgd(model, x, labels, epsilon=2, pixels=True)
    changed = (result.adversarial != x).any(axis).flatten(1).sum(1)
    assert int(changed.max()) == 2
    assert float(result.distance_l0.max()) > 2
    values = pgd(model, x, labels, epsilon=2)
    assert int(result.success.sum()) > int(values.success.sum())


def test_a_radius_of_all_values_is_only_held_by_the_bounds() -> None:
    model, x = network(), torch.rand(8, 3, 4, 4)
    result = pgd(model, x, predicted(model, x), epsilon=48)
    assert result.success.all()


def test_projection_keeps_the_nearest_of_all_choices() -> None:
    generator = torch.Generator().manual_seed(2)
    delta = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    lower = -torch.rand(20, 5, generator=generator, dtype=torch.float64)
    upper = torch.rand(20, 5, generator=generator, dtype=torch.float64)
    projected = L0().project(delta, torch.full((len(delta),), 2.0), lower, upper)
    choices = torch.combinations(torch.arange(5), 2)
    for row in range(20):
        distances = []
        for choice in choices:
            point = torch.zeros(5, dtype=torch.float64)
            point[choice] = delta[row].clamp(lower[row], upper[row])[choice]
            distances.append(float((point - delta[row]).norm()))
        assert float((projected[row] - delta[row]).norm()) == pytest.approx(min(distances))
        assert int((projected[row] != 0).sum()) == 2


@pytest.mark.parametrize(
    "params",
    [{"epsilon": 2.5}, {"norm": "l2", "pixels": True}, {"epsilon": -1}],
)
def test_counts_are_whole_and_belong_to_l0(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PGDParams.model_validate({"norm": "l0"} | params)


def test_flat_vectors_have_no_pixels() -> None:
    model = classifier(nn.Linear(6, 3), (6,), bounds=(0.0, 1.0))
    with pytest.raises(InvalidRequest, match=r"params\.pixels"):
        pgd(model, torch.rand(1, 6), torch.tensor([0]), pixels=True)


def test_the_customary_count_needs_no_confirmation_in_any_units() -> None:
    model = classifier(nn.Linear(60, 3), (60,), bounds=(0.0, 65535.0))
    x = torch.rand(1, 60) * 65535
    assert float(pgd(model, x, predicted(model, x), steps=3).distance_l0) <= 24

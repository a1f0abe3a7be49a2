"""Rotations and translations as an attack."""

from typing import Any

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from interpret_plugins.attacks.spatial import Spatial, SpatialResult, transform
from interpret_plugins.synthesis.spatial import Axes
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

CHW = Axes((2, 3), (1,))


def setting(degrees: float, down: float, right: float) -> Tensor:
    return torch.tensor([[degrees, down, right]], dtype=torch.float64)


def test_quarter_turns_and_whole_shifts_only_move_pixels() -> None:
    x = torch.rand(1, 2, 5, 5, dtype=torch.float64)
    turned = transform(x, CHW, setting(90, 0, 0), "lower", 0.0)
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)))
    moved = transform(x, CHW, setting(0, 1, -2), "lower", -1.0)
    torch.testing.assert_close(moved[:, :, 1:, :-2], x[:, :, :-1, 2:])
    for outside in (moved[:, :, 0], moved[..., -2:]):
        torch.testing.assert_close(outside, torch.full_like(outside, -1))


@pytest.mark.parametrize(("padding", "mode"), [("edge", "nearest"), ("reflect", "reflect")])
def test_turning_is_what_scipy_does(padding: str, mode: str) -> None:
    x = torch.rand(1, 1, 9, 12, dtype=torch.float64)
    found = transform(x, CHW, setting(23, 0, 0), padding, 0.0)
    angle = torch.tensor(23.0).double().deg2rad()
    matrix = torch.tensor([[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]]).numpy()
    middle = torch.tensor([4.0, 5.5]).double().numpy()
    expected = ndimage.affine_transform(
        x[0, 0].numpy(), matrix, offset=middle - matrix @ middle, order=1, mode=mode
    )
    torch.testing.assert_close(found[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-9)


class Where(nn.Module):
    """Class 1 where the lower right quarter of an 8 x 8 image is brighter than the rest."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        plane = x.mean(3) if self.last else x.mean(1)
        corner = plane[:, 4:, 4:].sum((1, 2))
        return torch.stack([plane.sum((1, 2)) - corner, corner], 1)


def dot(rows: int, last: bool = False) -> Tensor:
    x = torch.zeros(rows, 1, 8, 8)
    x[:, :, 3, 3] = 1.0
    return x.movedim(1, 3).contiguous() if last else x


def attack(model: Classifier, x: Tensor, labels: list[int], **params: Any) -> SpatialResult:
    made = Spatial.params_type.model_validate(params)
    Spatial().check(model, made)
    batch = Batch(x, Targets.classes(torch.tensor(labels)), tuple(range(len(x))))
    return Spatial().run(model, batch, made, Job())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("search", ["grid", "random"])
def test_what_is_returned_is_the_transformation_reported(last: bool, search: str) -> None:
    shape, layout = ((8, 8, 1), "HWC") if last else ((1, 8, 8), "CHW")
    model = classifier(Where(last), shape, input_layout=layout)
    x = dot(3, last)
    axes = Axes.of(model)
    result = attack(model, x, [0, 0, 1], search=search, translation=0.25, samples=40)
    assert result.success.all()
    assert result.initially_correct.tolist() == [1, 1, 0]
    assert (result.shift_down[:2] > 0).all()
    assert (result.shift_right[:2] > 0).all()
    assert torch.equal(result.adversarial[2], x[2])
    settings = torch.stack([result.rotation, result.shift_down, result.shift_right], 1)
    torch.testing.assert_close(transform(x, axes, settings, "lower", 0.0), result.adversarial)
    assert (settings.abs() <= torch.tensor([30.0, 2.0, 2.0])).all()
    if search == "grid":
        assert (result.queries[:2] < 200).all()


def test_a_search_without_shifts_cannot_move_the_dot_across() -> None:
    model = classifier(Where(), (1, 8, 8), input_layout="CHW")
    result = attack(model, dot(1), [0], translation=0.0)
    assert not result.success.any()
    assert result.queries.tolist() == [1 + 31 + 1]
    full = attack(model, dot(1), [0], translation=0.0625, rotation=5.0)
    assert not full.success.any()
    assert full.queries.tolist() == [1 + 775 + 1]


def test_vectors_are_refused() -> None:
    model = classifier(nn.Linear(4, 2), (4,))
    with pytest.raises(InvalidRequest, match="takes no images"):
        Spatial().check(model, Spatial.params_type())

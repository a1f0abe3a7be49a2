"""What excites a unit: brute force, receptive fields by geometry, passes, several units."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.internals.receptive import ReceptiveFields
from interpret_plugins.internals.top_activating import TopActivating
from interpret_server.models.classifier import Classifier
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.plugins.internals.networks import FORMS, SHAPE, Network, Recorder, images, loaded, run

PLUGIN, X = TopActivating(), images(20)


def to(kind: TargetKind, layer: str | None, *index: int, rows: int = 20) -> Targets:
    return Targets(kind, torch.tensor(index).expand(rows, -1), layer)


def fields(model: Classifier, layer: str, shape: tuple[int, ...], units: Tensor) -> Tensor:
    """Boxes of units, three rows at a time."""
    found = ReceptiveFields(model, layer, shape)
    parts = [range(i, min(i + 3, found.passes)) for i in range(0, found.passes, 3)]
    row = torch.rand(shape)
    return found.boxes([found.seen(row, units, part) for part in parts], len(units))


@pytest.mark.parametrize("form", FORMS)
def test_the_strongest_inputs_are_those_of_a_search_by_hand(form: str, tmp_path: Path) -> None:
    module = Network().eval()
    model = loaded(module, form, tmp_path)
    maps = module.two(module.second(module.one(module.first(X)))).detach()[:, 3]
    largest = maps.flatten(1).amax(1)
    order = largest.argsort(descending=True)
    found = run(PLUGIN, model, X, to(TargetKind.CHANNEL, "two", 3), Recorder(8), k=5)
    assert found.indices.tolist() == order[:5].tolist()
    torch.testing.assert_close(found.values, largest[order[:5]])
    torch.testing.assert_close(found.activation, largest)
    assert found.rank[order].tolist() == list(range(20))
    for number in range(5):
        row, (channel, i, j) = int(found.indices[number]), found.positions[number].tolist()
        assert channel == 3
        assert maps[row, i, j] == maps[row].max()
        # 3 by 3 of 3 by 3 places, of which the second convolution's padding cuts one off
        box = [[max(i - 1, 0), min(i + 4, 8)], [max(j - 1, 0), min(j + 4, 8)]]
        assert found.boxes[number].tolist() == box
        (top, bottom), (left, right) = box
        down, across = 5 - (bottom - top), 5 - (right - left)
        crop = found.crops[number]
        seen = crop[
            :,
            (down if top == 0 else 0) : (5 if top == 0 else bottom - top),
            (across if left == 0 else 0) : (5 if left == 0 else right - left),
        ]
        assert torch.equal(seen, X[row, :, top:bottom, left:right])
        assert float(crop.abs().sum()) == pytest.approx(float(seen.abs().sum()), rel=1e-6)


class Stack(nn.Module):
    """Strides, dilation, pooling, rectifiers that are closed, zero weights, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 4, 3, padding=2, dilation=2),
            nn.Hardswish(),
            nn.AvgPool2d(2, 2),
        )
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4 * 25, 2)
        with torch.no_grad():
            self.body[0].bias.fill_(-100)
            self.body[3].weight[:, 1:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.body(x)).flatten(1))


def test_receptive_fields_follow_the_geometry_whatever_the_weights() -> None:
    model = classifier(Stack().eval(), (1, 40, 40), input_layout="CHW")
    units = torch.tensor([[1, i, j] for i in (0, 2, 4) for j in (0, 3)])
    found = fields(model, "norm", (1, 40, 40), units)

    def field(place: int) -> list[int]:
        low, high = place, place
        steps = ((2, 2, 0, 1), (3, 1, 2, 2), (3, 2, 1, 1), (5, 2, 2, 1))
        for size, (kernel, stride, padding, dilation) in zip((10, 10, 20, 40), steps, strict=True):
            low = max(low * stride - padding, 0)
            high = min(high * stride - padding + dilation * (kernel - 1), size - 1)
        return [low, high + 1]

    for unit, box in zip(units.tolist(), found.tolist(), strict=True):
        assert box == [field(unit[1]), field(unit[2])]


def test_what_sees_everything_and_what_hides_it_have_the_whole_input_for_a_field() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeezed, self.compared = nn.Identity(), nn.Identity()
            self.last = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.squeezed(x * torch.sigmoid(x.mean(2, keepdim=True)))
            return self.last(self.compared((x > 0.5).float())[:, 0])

    model = classifier(Read(), (1, 16), input_layout="CL")
    unit = torch.tensor([[0, 7]])
    assert fields(model, "squeezed", (1, 16), unit).tolist() == [[[0, 16]]]
    assert fields(model, "compared", (1, 16), unit).tolist() == [[[0, 16]]]


def test_signals_and_flat_inputs_have_fields_along_their_one_axis() -> None:
    signal = nn.Sequential(nn.Conv1d(2, 3, 4, stride=2), nn.Flatten(), nn.Linear(21, 2))
    model = classifier(signal, (2, 16), input_layout="CL")
    assert fields(model, "0", (2, 16), torch.tensor([[2, 3]])).tolist() == [[[6, 10]]]
    flat = classifier(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), (5,))
    assert fields(flat, "0", (5,), torch.tensor([[2]])).tolist() == [[[0, 5]]]


def test_neurons_and_classes_are_taken_as_they_are() -> None:
    model = classifier(Network(), SHAPE, input_layout="CHW")
    values = model.activations(X, ["second"])[0][:, 2, 4, 1].detach()
    found = run(PLUGIN, model, X, to(TargetKind.NEURON, "second", 2, 4, 1), k=2)
    torch.testing.assert_close(found.activation, values)
    assert found.positions.tolist() == [[2, 4, 1]] * 2
    found = run(PLUGIN, model, X, to(TargetKind.CLASS, None, 3), k=50)
    scores = model(X)[:, 3].detach()
    assert found.indices.tolist() == scores.argsort(descending=True).tolist()
    assert found.boxes.tolist() == [[[0, 8], [0, 8]]] * 20
    assert torch.equal(found.crops, X[found.indices])


def test_units_are_searched_for_among_the_rows_that_name_them() -> None:
    model = classifier(Network(), SHAPE)
    labels = torch.tensor([2, 0] * 10)
    found = run(PLUGIN, model, X, Targets.classes(labels), k=3)
    scores = model(X).detach()
    for start, label in ((0, 2), (3, 0)):
        own = [row for row in range(20) if labels[row] == label]
        best = sorted(own, key=lambda row: -float(scores[row, label]))
        assert found.indices[start : start + 3].tolist() == best[:3]
        assert found.rank[best].tolist() == list(range(10))


def test_few_rows_go_through_the_model_at_once() -> None:
    model = classifier(Network(), SHAPE, input_layout="CHW")
    sizes: list[int] = []
    compute: Any = model.module.compute
    model.module.compute = lambda form, x: (sizes.append(len(x)), compute(form, x))[1]  # type: ignore[method-assign]
    job = Recorder(6)
    run(PLUGIN, model, X, to(TargetKind.CHANNEL, "one", 3), job, k=5)
    assert sizes == [6, 6, 6, 2, 6, 6, 5]  # the rows, then 8 and 8 places, and all of them
    assert job.steps == [7]

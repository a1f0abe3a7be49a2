"""Targets against slow loops, and their validation."""

from itertools import product

import pytest
import torch

from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets

ROWS = 3
SHAPES = [(5,), (5, 4), (5, 4, 3)]


def _index(kind: TargetKind, shape: tuple[int, ...]) -> torch.Tensor:
    limits = {
        TargetKind.CLASS: shape[:1],
        TargetKind.CHANNEL: shape[:1],
        TargetKind.NEURON: shape,
    }.get(kind, ())
    columns = [torch.randint(0, limit, (ROWS,)) for limit in limits]
    return torch.stack(columns, 1) if columns else torch.zeros(ROWS, 0, dtype=torch.int64)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_neuron_is_one_element(shape: tuple[int, ...]) -> None:
    values = torch.randn(ROWS, *shape)
    index = _index(TargetKind.NEURON, shape)
    chosen = Targets(TargetKind.NEURON, index, "layer").select(values)
    for row in range(ROWS):
        element = values[row]
        for position in index[row]:
            element = element[position]
        assert chosen[row] == element


@pytest.mark.parametrize("shape", SHAPES)
def test_a_channel_is_the_mean_over_its_positions(shape: tuple[int, ...]) -> None:
    values = torch.randn(ROWS, *shape, dtype=torch.float64)
    index = _index(TargetKind.CHANNEL, shape)
    chosen = Targets(TargetKind.CHANNEL, index, "layer").select(values)
    for row in range(ROWS):
        positions = list(product(*(range(size) for size in shape[1:])))
        total = sum(float(values[(row, int(index[row, 0]), *place)]) for place in positions)
        assert float(chosen[row]) == pytest.approx(total / len(positions))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_the_mean_over_all_of_it(shape: tuple[int, ...]) -> None:
    values = torch.randn(ROWS, *shape, dtype=torch.float64)
    chosen = Targets(TargetKind.LAYER, _index(TargetKind.LAYER, shape), "layer").select(values)
    for row in range(ROWS):
        numbers = values[row].reshape(-1).tolist()
        assert float(chosen[row]) == pytest.approx(sum(numbers) / len(numbers))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_direction_over_channels_weighs_their_means(shape: tuple[int, ...]) -> None:
    values = torch.randn(ROWS, *shape, dtype=torch.float64)
    direction = torch.randn(ROWS, shape[0], dtype=torch.float64)
    targets = Targets(TargetKind.DIRECTION, torch.zeros(ROWS, 0), "layer", direction)
    for row, value in enumerate(targets.select(values)):
        means = [values[row, channel].mean() for channel in range(shape[0])]
        expected = sum(float(a * b) for a, b in zip(means, direction[row], strict=True))
        assert float(value) == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_direction_of_the_layers_shape_is_an_inner_product(shape: tuple[int, ...]) -> None:
    values, direction = torch.randn(2, ROWS, *shape, dtype=torch.float64)
    targets = Targets(TargetKind.DIRECTION, torch.zeros(ROWS, 0), "layer", direction)
    for row, value in enumerate(targets.select(values)):
        pairs = zip(values[row].reshape(-1), direction[row].reshape(-1), strict=True)
        assert float(value) == pytest.approx(sum(float(a * b) for a, b in pairs))


def test_a_class_is_its_logit() -> None:
    logits = torch.randn(4, 7)
    classes = torch.tensor([0, 6, 3, 3])
    chosen = Targets.classes(classes).select(logits)
    assert chosen.tolist() == [logits[row, label] for row, label in enumerate(classes)]


def test_no_target_selects_nothing() -> None:
    with pytest.raises(InvalidRequest, match="needs a target"):
        Targets.none(2).select(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("targets", "shape", "sentence"),
    [
        (Targets.classes(torch.tensor([0, 10])), (10,), "class 10 is out of range; m has 0 to 9"),
        (Targets.classes(torch.tensor([-1])), (10,), "class -1 is out of range"),
        (Targets(TargetKind.CHANNEL, torch.tensor([[8]]), "l"), (8, 4, 4), "channel 8 is out"),
        (Targets(TargetKind.NEURON, torch.tensor([[1, 4, 0]]), "l"), (8, 4, 4), "0 to 3 on axis 1"),
        (Targets(TargetKind.NEURON, torch.tensor([[1]]), "l"), (8, 4, 4), "takes 3 indices, not 1"),
        (
            Targets(TargetKind.DIRECTION, torch.zeros(1, 0), "l", torch.zeros(1, 5)),
            (8, 4, 4),
            r"the direction has shape \[5\]; m takes \[8, 4, 4\] or \[8\]",
        ),
        (Targets(TargetKind.DIRECTION, torch.zeros(1, 0), "l"), (8,), "the direction has shape"),
    ],
)
def test_targets_outside_a_layer_are_refused_with_its_range(
    targets: Targets, shape: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        targets.validate(shape, "m")
    assert caught.value.violations[0].field == "target"


def test_rows_are_taken_with_their_directions() -> None:
    direction = torch.randn(3, 4)
    targets = Targets(TargetKind.DIRECTION, torch.zeros(3, 0), "layer", direction)
    taken = targets.take(torch.tensor([2, 0]))
    assert len(taken) == 2
    assert taken.layer == "layer"
    assert taken.direction is not None
    assert torch.equal(taken.direction, direction[[2, 0]])
    assert torch.equal(
        Targets.classes(torch.arange(5)).take(slice(1, 3)).labels, torch.arange(1, 3)
    )


def test_only_classes_have_labels() -> None:
    with pytest.raises(InvalidRequest, match="a class is needed here, not a layer"):
        _ = Targets(TargetKind.LAYER, torch.zeros(1, 0), "layer").labels

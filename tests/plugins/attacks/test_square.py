"""The Square attack: random search by scores, within a budget of queries."""

from typing import Any

import pytest
import torch
from attack_networks import predicted
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult, Attempt
from interpret_plugins.attacks.square import Square, SquareParams, square
from interpret_plugins.attacks.windows import Grid, twin_peaks
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

NORMS = ["linf", "l2", "l1"]
EPSILONS = {"linf": 0.06, "l2": 0.7, "l1": 6.0}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
SIZE = 12


class Counting(nn.Module):
    """Counts the rows that pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.rows = module, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.module(x)
        return logits


def network(layout: str = "CHW", dtype: torch.dtype = torch.float32) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 100, 20), nn.ReLU(), nn.Linear(20, 5))
    shape = {"CHW": (3, 10, 10), "HWC": (10, 10, 3), "CL": (3, 100), "other": (300,)}[layout]
    return classifier(module.to(dtype), shape, input_layout=layout)


def linear(bias: float) -> tuple[Classifier, Tensor]:
    """Logits (0, w.x + b)."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return classifier(layer, (SIZE,), bounds=(-100.0, 100.0)), weight


def attack(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    seeds: tuple[int, ...] | None = None,
    tensors: dict[str, Tensor] | None = None,
    **params: Any,
) -> AttackResult:
    made = SquareParams.model_validate({"queries": 150, **params})
    batch = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))), tensors or {})
    return Square().run(model, batch, made, Job())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["CHW", "HWC", "CL", "other"])
def test_rows_of_any_layout_are_changed_within_the_ball(layout: str, norm: str) -> None:
    model = network(layout)
    x = torch.rand(12, *model.input_shape)
    labels = predicted(model, x)
    result = attack(model, x, labels, norm=norm, epsilon=EPSILONS[norm])
    again = predicted(model, result.adversarial)
    assert torch.equal(result.success, again != labels)
    assert 2 <= int(result.success.sum())
    assert (getattr(result, f"distance_{norm}") <= EPSILONS[norm]).all()
    assert 0 <= float(result.adversarial.min()) <= float(result.adversarial.max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 4])
def test_the_budget_is_never_exceeded(norm: str, restarts: int) -> None:
    model = network()
    x = torch.rand(8, 3, 10, 10)
    counting = Counting(model.module.body)
    model.module.body = counting
    labels = predicted(model, x)
    counting.rows = 0
    for queries in (7, 40):
        result = attack(
            model, x, labels, norm=norm, epsilon=0.02, queries=queries, restarts=restarts
        )
        assert int(result.queries.max()) <= queries
        assert counting.rows == int(result.queries.sum())
        assert queries - restarts - 3 < int(result.queries.max())
        counting.rows = 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_a_rows_result_depends_neither_on_its_mates_nor_on_their_order(
    norm: str, targeted: bool
) -> None:
    model = network(dtype=torch.float64)
    x = torch.rand(4, 3, 10, 10, dtype=torch.float64)
    labels = model(x).topk(2).indices[:, int(targeted)]
    params = {"norm": norm, "epsilon": EPSILONS[norm], "targeted": targeted, "restarts": 2}
    params["queries"] = 80
    together = attack(model, x, labels, **params)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = attack(model, x[order], labels[order], tuple(order.tolist()), **params)
    torch.testing.assert_close(shuffled.adversarial, together.adversarial[order])
    assert torch.equal(shuffled.queries, together.queries[order])
    assert 0 < int(together.success.sum())
    for row in range(4):
        alone = attack(model, x[row : row + 1], labels[row : row + 1], (row,), **params)
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[row])


@pytest.mark.parametrize(("norm", "least"), [("linf", 0.999), ("l2", 0.8), ("l1", 0.6)])
def test_the_change_of_a_linear_score_comes_close_to_the_worst_and_never_beyond(
    norm: str, least: float
) -> None:
    model, weight = linear(50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    labels = torch.ones(3, dtype=torch.int64)
    result = attack(model, x, labels, norm=norm, epsilon=0.7, queries=800)
    worst = 0.7 * torch.linalg.vector_norm(weight, ord=DUAL[norm])
    change = (result.logits - result.adversarial_logits)[:, 1]
    assert (change <= worst * (1 + 1e-12)).all()
    assert (change >= worst * least).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_success_comes_exactly_beyond_the_distance_to_the_boundary(targeted: bool) -> None:
    model, weight = linear(0.3)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    side = predicted(model, x)
    distance = model(x)[:, 1].abs() / weight.abs().sum()
    for row in range(3):
        for factor, expected in ((0.999, False), (1.001, True)):
            result = attack(
                model,
                x[row : row + 1],
                (1 - side if targeted else side)[row : row + 1],
                epsilon=float(distance[row]) * factor,
                targeted=targeted,
                confirm_small_epsilon=True,
                queries=500,
            )
            assert bool(result.success) is expected


def test_a_box_is_searched_at_its_corners() -> None:
    model, weight = linear(50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    lower, upper = x - torch.rand_like(x), x + torch.rand_like(x)
    boxes = {"lower": lower, "upper": upper}
    result = attack(model, x, torch.ones(3, dtype=torch.int64), tensors=boxes, queries=1000)
    torch.testing.assert_close(result.adversarial, torch.where(weight > 0, lower, upper))


def test_more_queries_of_one_search_find_more() -> None:
    model, x = network(), torch.rand(24, 3, 10, 10)
    labels = predicted(model, x)
    found = [
        int(attack(model, x, labels, epsilon=0.03, queries=queries).success.sum())
        for queries in (5, 400)
    ]
    assert found[0] < found[1]


def test_rows_that_are_won_leave_the_batch() -> None:
    model, x = network(), torch.rand(8, 3, 10, 10)
    batch = Batch(x, Targets.classes(predicted(model, x)), tuple(range(8)))
    attempt = Attempt.begin(model, batch, SquareParams(epsilon=0.06), Job())
    counting = Counting(model.module.body)
    model.module.body = counting
    rows = []
    for _ in square(attempt, 60):
        rows.append(counting.rows)
        counting.rows = 0
    assert rows[0] == 8
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 8


def test_windows_lie_anywhere_in_the_grid_and_shrink_with_the_share() -> None:
    grid = Grid.of(network("HWC"), (10, 10, 3))
    assert grid.window(0.8) == (9, 9)
    assert grid.window(0.8 / 512) == (1, 1)
    assert grid.window(0.001, least=3, odd=True) == (3, 3)
    uniform = torch.rand(4000, 2)
    uniform[0], uniform[1] = 0, 1 - 2**-24
    places = grid.places((3, 2), grid.anywhere((3, 2), uniform))
    assert places[0].tolist() == [0, 1, 10, 11, 20, 21]
    assert places[1].tolist() == [78, 79, 88, 89, 98, 99]
    assert places[:, 0].unique().numel() == 8 * 9


def test_pieces_of_a_picture_find_what_whole_pictures_find(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)
        )
    model = classifier(module.double(), (1, 16, 16))
    x = torch.rand(20, 1, 16, 16, dtype=torch.float64)
    labels = predicted(model, x)
    by_pieces = attack(model, x, labels, epsilon=0.15)
    monkeypatch.setattr(Grid, "seen", lambda *_: None)
    whole = attack(model, x, labels, epsilon=0.15)
    assert torch.equal(by_pieces.adversarial, whole.adversarial)
    assert 3 <= int(whole.success.sum()) <= 17


@pytest.mark.parametrize("layout", ["CHW", "HWC", "CL", "other"])
def test_a_row_comes_back_from_its_grid(layout: str) -> None:
    model = network(layout)
    grid = Grid.of(model, model.input_shape)
    x = torch.rand(2, *model.input_shape)
    flat = grid.flat(x)
    assert flat.shape == (2, grid.channels, grid.positions)
    assert torch.equal(grid.rows(flat), x)


def test_channels_of_a_single_position_are_positions() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(20, 2))
    grid = Grid.of(classifier(module, (20, 1), input_layout="CL"), (20, 1))
    assert (grid.channels, grid.sizes) == (1, (20,))
    x = torch.rand(3, 20, 1)
    assert torch.equal(grid.rows(grid.flat(x)), x)


def test_tiles_cover_the_middle_of_the_grid_once() -> None:
    sides, places = Grid((1, 29, 13), 0, (29, 13)).tiles()
    assert sides == (5, 2)
    assert places.unique().numel() == places.numel() == 5 * 5 * 6 * 2


@pytest.mark.parametrize("order", [1, 2])
def test_peaks_are_of_unit_norm_and_cancel_each_other(order: int) -> None:
    for change in twin_peaks((6, 6), order):
        assert float(torch.linalg.vector_norm(change, ord=order)) == pytest.approx(1)
        assert float(change.sum()) == pytest.approx(0)
    along, across = twin_peaks((5, 5), order).reshape(2, 5, 5)
    torch.testing.assert_close(along, across.T)
    # Of a half of 3 x 5 the middle is the highest: 1 + 1/4 + 1/9, or with fourth powers.
    falls = [1 / m ** (4 if order == 1 else 2) for m in (1, 2, 3)]
    assert float(along[3, 2] / along[2, 2]) == pytest.approx(sum(falls) / sum(falls[1:]))


@pytest.mark.parametrize(
    "params",
    [{"queries": 3}, {"p": 0}, {"p": 1.1}, {"restarts": 0}, {"queries": 10, "restarts": 8}],
)
def test_parameters_out_of_range_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SquareParams.model_validate(params)

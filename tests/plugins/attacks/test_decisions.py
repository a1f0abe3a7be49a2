"""Attacks by decisions alone: HopSkipJump and the boundary attack."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attack_networks import predicted
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.boundary import Boundary
from interpret_plugins.attacks.decisions import Row, bisect
from interpret_plugins.attacks.deepfool import DeepFool
from interpret_plugins.attacks.hop_skip_jump import HopSkipJump
from interpret_plugins.attacks.norms import NORMS
from interpret_server.errors import FailedPrecondition, InvalidRequest
from interpret_server.models.assembly import assemble, from_module
from interpret_server.models.classifier import Bounds
from interpret_server.models.inputs import ResolvedInput
from interpret_server.models.manifest import OutputSpec
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Capability, Classifier, Job, Plugin
from interpret_server.testing import classifier

SIZE = 12
DUAL = {"linf": 1.0, "l2": 2.0}
CASES = [(HopSkipJump, "l2"), (HopSkipJump, "linf"), (Boundary, "l2")]
Attacker = type[Plugin[Any, AttackResult]]


class Heard(Job):
    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows, self.warnings = max_rows, list[tuple[list[int], str]]()

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((torch.nonzero(rows).flatten().tolist(), message))


def attack(
    plugin: Attacker,
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    *,
    job: Job | None = None,
    seeds: tuple[int, ...] | None = None,
    start: Tensor | None = None,
    **params: Any,
) -> AttackResult:
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    tensors = {} if start is None else {"start": start}
    batch = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))), tensors)
    return plugin().run(model, batch, made, job or Job())


def linear() -> tuple[Classifier, Tensor]:
    """Three classes with logits 0, w.x + 0.3 and a distant third."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight, 0 * weight]))
        layer.bias.copy_(torch.tensor([0.0, 0.3, -30.0]))
    return classifier(layer, (SIZE,), bounds=(-100.0, 100.0)), weight


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def network() -> Classifier:
    return classifier(Pixels(), (1, 8, 8), bounds=(0.0, 1.0))


class Winner(Pixels):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).argmax(1)


def decisions() -> Classifier:
    """The same network, of which the winning class alone is told."""
    spec = ResolvedInput("x", (1, 8, 8), bounds=Bounds(0.0, 1.0))
    body = from_module(Winner(), spec, OutputSpec(classes=5), form="runtime", reason="No graph.")
    return assemble("winner", body, spec)


@pytest.mark.parametrize(("plugin", "norm"), CASES)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_change_nears_the_distance_to_the_boundary_of_a_linear_model(
    plugin: Attacker, norm: str, targeted: bool
) -> None:
    model, weight = linear()
    x = torch.randn(2, SIZE, dtype=torch.float64)
    score = x @ weight + 0.3
    side = (score > 0).long()
    labels = 1 - side if targeted else side
    result = attack(plugin, model, x, labels, norm=norm, targeted=targeted, queries=2000)
    expected = score.abs() / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    found = getattr(result, f"distance_{norm}")
    assert result.success.all()
    assert (found >= expected * (1 - 1e-6)).all()
    assert (found <= expected * 1.1).all()


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_the_winning_class_is_all_that_is_needed(plugin: Attacker, norm: str) -> None:
    model, x = decisions(), torch.rand(4, 1, 8, 8)
    assert {Capability.SCORES, Capability.GRADIENT} <= model.lacking.keys()
    labels = predicted(model, x)
    params: dict[str, Any] = {"norm": norm, "queries": 400}
    result = attack(plugin, model, x, labels, **params)
    assert result.success.all()
    assert torch.equal(result.success, predicted(network(), result.adversarial) != labels)
    scored = attack(plugin, network(), x, labels, **params)
    sizes = [getattr(found, f"distance_{norm}") for found in (result, scored)]
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.1, atol=0)
    assert (result.queries <= 400).all()


@pytest.mark.parametrize(("plugin", "norm"), CASES)
@pytest.mark.parametrize("queries", [4, 17, 200])
def test_queries_are_counted_exactly_and_never_exceed_the_budget(
    plugin: Attacker, norm: str, queries: int
) -> None:
    model, x = network(), torch.rand(5, 1, 8, 8)
    labels = predicted(model, x)
    labels[0] = (labels[0] + 1) % 5
    sizes: list[int] = []

    class Counting(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, rows: Tensor) -> Tensor:
            sizes.append(len(rows))
            return self.body(rows)

    model.module.body = Counting(model.module.body)
    result = attack(plugin, model, x, labels, norm=norm, queries=queries, job=Heard(max_rows=7))
    assert sum(sizes) == int(result.queries.sum())
    assert (result.queries <= queries).all()
    assert result.queries[0] == 2
    assert max(sizes) <= 7
    if queries > 17:  # probes fill the passes
        assert sum(sizes) / len(sizes) > 3


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_rows_do_not_depend_on_their_mates(plugin: Attacker, norm: str) -> None:
    model = network()
    model.module.double()
    model.dtype = torch.float64
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    labels = predicted(model, x)
    whole = attack(plugin, model, x, labels, norm=norm, queries=400)
    for row in range(4):
        part = slice(row, row + 1)
        alone = attack(
            plugin, model, x[part], labels[part], seeds=(row,), norm=norm, queries=400,
            job=Heard(max_rows=5),
        )  # fmt: skip
        torch.testing.assert_close(alone.adversarial, whole.adversarial[part], rtol=0, atol=1e-9)
        assert torch.equal(alone.queries, whole.queries[part])


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_more_queries_find_smaller_changes(plugin: Attacker, norm: str) -> None:
    model, x = network(), torch.rand(6, 1, 8, 8)
    labels = predicted(model, x)
    few, many = (
        getattr(attack(plugin, model, x, labels, norm=norm, queries=count), f"distance_{norm}")
        for count in (200, 2000)
    )
    assert (many <= few * (1 + 1e-6)).all()
    assert float(many.mean()) < 0.9 * float(few.mean())


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_a_row_may_stop_within_a_distance(plugin: Attacker, norm: str) -> None:
    model, x = decisions(), torch.rand(6, 1, 8, 8)
    labels = predicted(model, x)
    whole = attack(plugin, model, x, labels, norm=norm, queries=600)
    sizes = getattr(whole, f"distance_{norm}")
    within = float(sizes.median()) * 1.2
    early = attack(plugin, model, x, labels, norm=norm, queries=600, stop_within=within)
    reached = getattr(early, f"distance_{norm}") <= within
    assert torch.equal(reached, sizes <= within)
    spent, most = early.queries[reached], whole.queries[reached]
    assert (spent <= most).all()  # a row may come within the distance with its last queries
    assert int((spent < most).sum()) >= 2
    assert torch.equal(early.adversarial[~reached], whole.adversarial[~reached])
    assert 3 <= int(reached.sum()) < 6


def far_class() -> Classifier:
    """Class 1 lies in a corner that random points do not reach."""

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside = (x.flatten(1) - 0.9).amin(1)
            return torch.stack([-inside, inside], 1)

    return classifier(Corner(), (SIZE,), bounds=(0.0, 1.0))


@pytest.mark.parametrize("plugin", [HopSkipJump, Boundary])
def test_the_search_begins_at_the_starting_point_given(plugin: Attacker) -> None:
    model, x = far_class(), torch.full((3, SIZE), 0.2)
    labels, start = torch.ones(3, dtype=torch.int64), torch.full((3, SIZE), 0.99)
    start[1] = 0.3
    job = Heard()
    params: dict[str, Any] = {"targeted": True, "queries": 600, "tries": 20, "job": job}
    result = attack(plugin, model, x, labels, start=start, **params)
    assert result.success.tolist() == [True, False, True]
    expected = 0.7 * SIZE**0.5  # to the corner's own corner
    assert (result.distance_l2[[0, 2]] >= expected * (1 - 1e-6)).all()
    assert (result.distance_l2[[0, 2]] <= expected * 1.2).all()
    assert torch.equal(result.adversarial[1], x[1])
    assert result.queries[1] == 1 + 1 + 20 + 1
    assert [(rows, text.split(",")[0]) for rows, text in job.warnings] == [
        ([1], "the starting point given does not reach the goal; another one was looked for"),
        ([1], "no starting point that reaches the goal was found"),
    ]


def test_a_row_that_has_reached_its_goal_is_returned_unchanged() -> None:
    model, x = network(), torch.rand(2, 1, 8, 8)
    labels = (predicted(model, x) + 1) % 5
    result = attack(HopSkipJump, model, x, labels)
    assert torch.equal(result.adversarial, x)
    assert result.success.all()
    assert result.initially_correct.tolist() == [0, 0]


def test_a_network_without_classes_is_refused() -> None:
    model = classifier(nn.Linear(4, 4), (4,), values=True)
    with pytest.raises((FailedPrecondition, InvalidRequest), match="no scores of classes"):
        HopSkipJump().check(model, HopSkipJump.params_type())


@pytest.mark.parametrize(
    "params", [{"queries": 3}, {"norm": "l1"}, {"epsilon": 0.1}, {"probes": 1}]
)
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HopSkipJump.params_type.model_validate(params)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bisection_ends_at_the_boundary(norm: str) -> None:
    x, far = torch.zeros(1, 4), torch.tensor([[0.8, 0.4, -0.2, 0.1]])
    lower = torch.full_like(x, -1.0)
    row = Row(x, lower, -lower, NORMS[norm], torch.Generator(), 100)
    search = bisect(row, far, 1e-4)
    point, asked = next(search), 1
    try:
        while True:
            point = search.send([float(point[0, 0]) > 0.3])
            asked += 1
    except StopIteration as end:
        found = end.value
    assert asked == 14
    assert float(found[0, 0]) == pytest.approx(0.3, abs=2e-4)
    others = [0.4 * 0.375, -0.2 * 0.375] if norm == "l2" else [0.3, -0.2]
    assert found[0, 1:3].tolist() == pytest.approx(others, abs=2e-4)


@pytest.mark.shared_data
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_changes_on_a_real_classifier_near_those_by_gradients(shared_data: Path, norm: str) -> None:
    from tests.plugins.attacks.test_real_classifiers import digits, lenet

    model = lenet(shared_data, "cln")
    x, labels = digits(shared_data, 4)
    found, near = (
        getattr(attack(plugin, model, x, labels, norm=norm, **params), f"distance_{norm}")
        for plugin, params in ((HopSkipJump, {"queries": 800}), (DeepFool, {}))
    )
    assert float((found / near).median()) < 2.0

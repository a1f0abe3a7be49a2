"""What every attack promises of the tensors that it returns."""

from collections.abc import Iterator

import pytest
import torch
from attack_networks import predicted
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.attacks.apgd import APGD
from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.bim import BIM
from interpret_plugins.attacks.fgm import FGM
from interpret_plugins.attacks.fgsm import FGSM, FGSMParams
from interpret_plugins.attacks.mi_fgsm import MIFGSM
from interpret_plugins.attacks.norms import L1, L2
from interpret_plugins.attacks.pgd import PGD, PGDParams
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier


def network(bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 16, 5),
        )
    return classifier(module, (3, 8, 8), bounds=bounds)


def images(rows: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(rows, 3, 8, 8) * (high - low) + low


def attack(
    plugin: type[PGD | APGD | FGSM],
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    seeds: tuple[int, ...] | None = None,
    tensors: dict[str, Tensor] | None = None,
    job: Job | None = None,
    **params: object,
) -> AttackResult:
    made = plugin.params_type.model_validate(params)
    batch = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))), tensors or {})
    return plugin().run(model, batch, made, job or Job())


EPSILONS = {"linf": 0.03, "l2": 0.4, "l1": 3.0}
CASES = [
    *((plugin, norm) for plugin in (PGD, APGD, BIM, MIFGSM) for norm in ("linf", "l2", "l1")),
    (FGSM, "linf"),
    (FGSM, "l2"),
    (FGM, "l2"),
    (FGM, "l1"),
]


@pytest.mark.parametrize(("plugin", "norm"), CASES)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.7, 2.3)])
def test_results_stay_in_ball_and_bounds_as_measured_in_float64(
    plugin: type[PGD | APGD | FGSM], norm: str, bounds: tuple[float, float]
) -> None:
    model = network(bounds)
    width = bounds[1] - bounds[0]
    x = images(24, *bounds).round(decimals=2).clamp(*bounds)
    for share in (1.0, 0.37):
        epsilon = EPSILONS[norm] * width * share
        result = attack(plugin, model, x, predicted(model, x), norm=norm, epsilon=epsilon)
        assert result.adversarial.dtype == torch.float32
        assert float(result.adversarial.min()) >= torch.tensor(bounds[0])
        assert float(result.adversarial.max()) <= torch.tensor(bounds[1])
        delta = (result.adversarial.double() - x.double()).flatten(1)
        order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
        assert (torch.linalg.vector_norm(delta, ord=order, dim=1) <= epsilon).all()
        assert (delta != 0).any()


@pytest.mark.parametrize(("plugin", "norm"), CASES)
@pytest.mark.parametrize("targeted", [False, True])
def test_success_is_what_the_returned_tensor_is_predicted_as(
    plugin: type[PGD | APGD | FGSM], norm: str, targeted: bool
) -> None:
    model = network()
    x = images(32)
    labels = model(x).topk(2).indices[:, int(targeted)]
    params = {"norm": norm, "epsilon": EPSILONS[norm], "targeted": targeted}
    result = attack(plugin, model, x, labels, **params)
    again = predicted(model, result.adversarial)
    assert torch.equal(result.success, (again == labels) if targeted else (again != labels))
    assert 0 < int(result.success.sum())
    torch.testing.assert_close(result.adversarial_logits, model(result.adversarial))
    torch.testing.assert_close(result.logits, model(x))


@pytest.mark.parametrize("plugin", [PGD, APGD, FGSM, BIM, MIFGSM])
def test_rows_misclassified_to_begin_with_are_returned_unchanged(
    plugin: type[PGD | APGD | FGSM],
) -> None:
    model = network()
    x = images(6)
    labels = predicted(model, x)
    labels[::2] = (labels[::2] + 1) % 5
    result = attack(plugin, model, x, labels, epsilon=0.05)
    assert torch.equal(result.adversarial[::2], x[::2])
    assert result.success[::2].all()
    assert result.initially_correct.tolist() == [0, 1, 0, 1, 0, 1]
    assert (result.distance_linf[::2] == 0).all()
    assert (result.distance_linf[1::2] > 0).all()
    assert (result.queries[::2] == 2).all()


@pytest.mark.parametrize("plugin", [PGD, APGD, FGSM, BIM, MIFGSM])
def test_a_row_that_has_its_target_already_is_returned_with_a_warning(
    plugin: type[PGD | APGD | FGSM],
) -> None:
    model, x = network(), images(3)
    job = Recorder()
    result = attack(plugin, model, x, predicted(model, x), job=job, targeted=True, epsilon=0.1)
    assert torch.equal(result.adversarial, x)
    assert result.success.all()
    assert [rows for rows, message in job.warnings if "target class" in message] == [[0, 1, 2]]


def test_metrics_are_the_norms_of_the_change() -> None:
    model, x = network(), images(4)
    result = attack(PGD, model, x, predicted(model, x), norm="l1", epsilon=2.0, steps=5)
    delta = (result.adversarial.double() - x.double()).flatten(1)
    assert torch.equal(result.distance_l0, (delta != 0).sum(1).double())
    torch.testing.assert_close(result.distance_l1, delta.abs().sum(1))
    torch.testing.assert_close(result.distance_l2, delta.norm(dim=1))
    torch.testing.assert_close(result.distance_linf, delta.abs().amax(1))


class Recorder(Job):
    def __init__(self) -> None:
        self.warnings: list[tuple[list[int], str]] = []
        self.steps = 0

    def track(self, total: int) -> Iterator[int]:
        for step in range(total):
            self.steps += 1
            yield step

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((torch.nonzero(rows).flatten().tolist(), message))


class Counting(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.rows = module, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.module(x)


def counted(model: Classifier) -> Counting:
    counting = Counting(model.module.body)
    model.module.body = counting
    return counting


def test_cost_falls_as_rows_succeed() -> None:
    model = network()
    x = images(16)
    labels = predicted(model, x)
    counting = counted(model)
    result = attack(PGD, model, x, labels, epsilon=0.02, steps=30)
    won = int(result.success.sum())
    assert 0 < won < 16
    # begin and finish see all rows; a row that is lost is seen 30 times, once more at the end, and
    # three times to see whether its gradient misleads.
    lost = 16 - won
    assert counting.rows < 2 * 16 + 34 * lost + 25 * won
    # A gradient is one forward pass and one backward pass.
    gradients = 31 * lost + (result.queries[result.success] - 2).div(2).floor().sum()
    assert counting.rows == int(result.queries.sum() - gradients)


def test_pgd_stops_when_every_row_has_succeeded() -> None:
    model, x = network(), images(4)
    job = Recorder()
    result = attack(PGD, model, x, predicted(model, x), job=job, epsilon=0.5, steps=40, restarts=5)
    assert result.success.all()
    assert job.steps < 40


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_a_rows_result_depends_neither_on_its_mates_nor_on_their_order(
    plugin: type[PGD | APGD | FGSM], norm: str
) -> None:
    model = network()
    model.module.double()
    model.dtype = torch.float64
    x = images(8).double()
    labels = predicted(model, x)
    params = {"norm": norm, "epsilon": EPSILONS[norm] * 0.6}
    if plugin is PGD:
        params |= {"steps": 8, "restarts": 2}
    together = attack(plugin, model, x, labels, **params)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    shuffled = attack(plugin, model, x[order], labels[order], tuple(order.tolist()), **params)
    torch.testing.assert_close(shuffled.adversarial, together.adversarial[order])
    assert torch.equal(shuffled.queries, together.queries[order])
    for row in range(8):
        alone = attack(plugin, model, x[row : row + 1], labels[row : row + 1], (row,), **params)
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[row])
        assert bool(alone.success) == bool(together.success[row])


def test_restarts_draw_new_starts_and_never_lose_a_success() -> None:
    model = network()
    x = images(32)
    labels = predicted(model, x)
    counts = [
        attack(PGD, model, x, labels, epsilon=0.012, steps=3, restarts=restarts).success
        for restarts in (1, 6)
    ]
    assert (counts[0] <= counts[1]).all()
    seeded = attack(PGD, model, x, labels, (7,) * 32, epsilon=0.012, steps=1)
    other = attack(PGD, model, x, labels, (8,) * 32, epsilon=0.012, steps=1)
    assert not torch.equal(seeded.adversarial, other.adversarial)


def test_one_step_of_pgd_from_the_input_is_fgsm() -> None:
    model = network()
    x = images(8)
    labels = predicted(model, x)
    one = attack(PGD, model, x, labels, epsilon=0.03, steps=1, step_size=0.03, random_start=False)
    fast = attack(FGSM, model, x, labels, epsilon=0.03)
    torch.testing.assert_close(one.adversarial, fast.adversarial)


@pytest.mark.parametrize("plugin", [PGD, APGD, FGSM, BIM, MIFGSM])
def test_an_epsilon_in_the_wrong_units_is_refused_until_confirmed(
    plugin: type[PGD | APGD | FGSM],
) -> None:
    model = network((0.0, 255.0))
    with pytest.raises(InvalidRequest, match=r"params\.epsilon: 0\.0313725 is under a thousandth"):
        plugin().check(model, plugin.params_type(epsilon=8 / 255))
    plugin().check(model, plugin.params_type(epsilon=8 / 255, confirm_small_epsilon=True))
    plugin().check(model, plugin.params_type(epsilon=8.0))
    plugin().check(model, plugin.params_type())


@pytest.mark.parametrize(
    "params",
    [
        {"epsilon": -1.0},
        {"norm": "l3"},
        {"steps": 0},
        {"step_size": 0.0},
        {"eps": 1.0},
        {"restarts": 2, "random_start": False},
        {"epsilon": float("nan")},
    ],
)
def test_parameters_out_of_range_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PGDParams.model_validate(params)


def test_fgsm_has_no_l1_form() -> None:
    with pytest.raises(ValidationError):
        FGSMParams.model_validate({"norm": "l1"})


@pytest.mark.parametrize("plugin", [PGD, APGD, FGSM, BIM, MIFGSM])
def test_box_bounds_every_value_of_its_row(plugin: type[PGD | APGD | FGSM]) -> None:
    model, x = network(), images(6)
    middle = images(6)  # the input itself may lie outside its box
    lower = (middle - 0.1 * images(6)).clamp(0, 1)
    upper = (middle + 0.1 * images(6)).clamp(0, 1)
    boxes = {"lower": lower - 5 * (lower == 0), "upper": upper}
    result = attack(plugin, model, x, predicted(model, middle), tensors=boxes)
    assert (result.adversarial >= lower).all()
    assert (result.adversarial <= upper).all()


@pytest.mark.parametrize(
    ("names", "params", "field"),
    [
        (("lower",), {}, "tensors.upper"),
        (("upper",), {}, "tensors.lower"),
        (("lower", "upper"), {"epsilon": 0.1}, "params.epsilon"),
        (("lower", "upper"), {"norm": "l2"}, "params.norm"),
    ],
)
def test_a_box_that_is_incomplete_or_contradicted_is_refused(
    names: tuple[str, ...], params: dict[str, object], field: str
) -> None:
    model, x = network(), images(2)
    with pytest.raises(InvalidRequest) as caught:
        attack(PGD, model, x, predicted(model, x), tensors=dict.fromkeys(names, x), **params)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("plugin", [PGD, APGD, FGSM, BIM, MIFGSM])
def test_an_empty_box_is_refused_by_its_row(plugin: type[PGD | APGD | FGSM]) -> None:
    model, x = network(), images(3)
    crossed = {"lower": x.clone(), "upper": x.clone()}
    crossed["lower"][1, 0, 0, 0], crossed["upper"][1, 0, 0, 0] = 0.6, 0.4
    outside = {"lower": x.clone(), "upper": x.clone()}
    outside["lower"][1], outside["upper"][1] = 1.5, 2.0
    for boxes in (crossed, outside):
        with pytest.raises(InvalidRequest, match=r"tensors\.lower: the box of row 1 is empty"):
            attack(plugin, model, x, predicted(model, x), tensors=boxes)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total.round() + 3, total * 0], 1)


@pytest.mark.parametrize("plugin", [PGD, APGD, FGSM, BIM, MIFGSM])
def test_a_gradient_of_zero_is_warned_about(plugin: type[PGD | APGD | FGSM]) -> None:
    model = classifier(Flat(), (4,))
    job = Recorder()
    x = torch.rand(2, 4)
    result = attack(plugin, model, x, torch.zeros(2, dtype=torch.int64), job=job, epsilon=0.1)
    assert not result.success.any()
    told = [row for rows, message in job.warnings if "zero gradient" in message for row in rows]
    assert sorted(told) == [0, 1]


@pytest.mark.parametrize("norm", [L1(), L2()])
def test_projection_is_the_nearest_point_of_ball_and_box(norm: L1 | L2) -> None:
    from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize

    generator = torch.Generator().manual_seed(3)
    delta = torch.randn(5, 4, generator=generator, dtype=torch.float64) * 2
    lower = -torch.rand(5, 4, generator=generator, dtype=torch.float64)
    upper = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    radius = 0.9
    projected = norm.project(delta, radius, lower, upper)
    for row in range(5):
        point = delta[row].numpy()
        if isinstance(norm, L1):  # the L1 ball by its 16 faces
            signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).numpy()
            ball: object = LinearConstraint(signs, -torch.inf, radius)
        else:
            ball = NonlinearConstraint(lambda d: (d**2).sum(), -torch.inf, radius**2)
        best = minimize(
            lambda d, p=point: ((d - p) ** 2).sum(),
            torch.zeros(4).numpy(),
            method="SLSQP",
            bounds=list(zip(lower[row].tolist(), upper[row].tolist(), strict=True)),
            constraints=[ball],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        torch.testing.assert_close(projected[row], torch.from_numpy(best.x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("norm", [L1(), L2()])
def test_random_starts_fill_the_ball_evenly(norm: L1 | L2) -> None:
    like = torch.empty(4000, 3)
    points = norm.random(range(4000), 0, like)
    radii = norm.size(points)
    assert float(radii.max()) <= 1 + 1e-6
    # The radius of a uniform draw from a ball in three dimensions has r^3 uniform.
    quantiles = (radii**3).sort().values
    expected = (torch.arange(4000) + 0.5) / 4000
    assert float((quantiles - expected).abs().max()) < 0.03
    assert (points.mean(0).abs() < 0.03).all()


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_every_row_may_have_a_radius_of_its_own(plugin: type[PGD | APGD | FGSM], norm: str) -> None:
    model, x = network(), images(4)
    labels = predicted(model, x)
    radii = torch.tensor([0.2, 0.7, 1.0, 0.5], dtype=torch.float64) * EPSILONS[norm]
    together = attack(plugin, model, x, labels, tensors={"epsilon": radii}, norm=norm)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    for row, radius in enumerate(radii.tolist()):
        part = slice(row, row + 1)
        alone = attack(plugin, model, x[part], labels[part], (row,), norm=norm, epsilon=radius)
        torch.testing.assert_close(together.adversarial[part], alone.adversarial, rtol=0, atol=1e-4)
        delta = (together.adversarial[row].double() - x[row].double()).flatten()
        assert float(torch.linalg.vector_norm(delta, ord=order)) <= radius


@pytest.mark.parametrize(
    ("radii", "params", "message"),
    [
        ([0.1, 0.1], {"epsilon": 0.1}, "either the parameter epsilon or the tensor"),
        ([[0.1, 0.2], [0.1, 0.2]], {}, "one radius for each row"),
        ([0.1, -0.1], {}, "not below zero"),
        ([0.1, 1e-6], {}, "1e-06 is under a thousandth"),
        ([2.5, 3.0], {"norm": "l0"}, "whole numbers"),
    ],
)
def test_radii_of_rows_that_make_no_sense_are_refused(
    radii: list[object], params: dict[str, object], message: str
) -> None:
    model, x = network(), images(2)
    tensors = {"epsilon": torch.tensor(radii)}
    with pytest.raises(InvalidRequest, match=message) as caught:
        attack(PGD, model, x, predicted(model, x), tensors=tensors, **params)
    assert caught.value.violations[0].field == "tensors.epsilon"


def test_radii_of_rows_contradict_a_box() -> None:
    model, x = network(), images(2)
    tensors = {"epsilon": torch.tensor([0.1, 0.1]), "lower": x, "upper": x}
    with pytest.raises(InvalidRequest, match="either epsilon or a box"):
        attack(PGD, model, x, predicted(model, x), tensors=tensors)

"""The smallest radius at which attacks succeed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpret_client
from interpret_plugins.attacks.bisection import Bisection, BisectionParams, BisectionResult
from interpret_plugins.attacks.pgd import PGD
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier, serve
from tests.plugins.attacks.test_contract import Recorder, counted, images, network, predicted
from tests.plugins.attacks.test_linear import DUAL, SIZE, linear, score

EXACT = [
    ("fgsm", "linf"),
    ("fgsm", "l2"),
    ("fgm", "l1"),
    ("bim", "linf"),
    ("pgd", "l2"),
    ("apgd", "linf"),
    ("apgd", "l1"),
    ("fab", "l2"),
]


def bisection(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    plugin: str,
    job: Job | None = None,
    seeds: tuple[int, ...] | None = None,
    bisect: dict[str, Any] | None = None,
    **params: Any,
) -> BisectionResult:
    attack = {"plugin": plugin, "params": params}
    made = BisectionParams.model_validate({"attack": attack, **(bisect or {})})
    batch = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))))
    return Bisection().run(model, batch, made, job or Job())


@pytest.mark.parametrize(("plugin", "norm"), EXACT)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_bracket_holds_the_distance_to_the_boundary_of_a_linear_model(
    plugin: str, norm: str, targeted: bool
) -> None:
    model, weight = linear(bias=0.3)
    x = torch.randn(6, SIZE, dtype=torch.float64)
    side = (score(model(x)) > 0).long()
    labels = 1 - side if targeted else side
    settings: dict[str, Any] = {"norm": norm, "targeted": targeted}
    if plugin == "pgd":
        settings["steps"] = 100
    result = bisection(model, x, labels, plugin, bisect={"steps": 40}, **settings)
    nearest = score(model(x)).abs() / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    assert result.success.all()
    torch.testing.assert_close(result.smallest_won, getattr(result, f"distance_{norm}"))
    assert (result.smallest_won >= nearest * (1 - 1e-9)).all()
    assert (result.largest_failed >= result.smallest_won * 0.99).all()
    slack = 1.05 if plugin == "pgd" else 1.0001  # of an attack that is not exact
    assert (result.largest_failed <= nearest * slack).all()


@pytest.mark.parametrize("epsilon", [1e-4, 0.02, 30.0])
def test_the_search_begins_at_the_attacks_radius_and_finds_its_way(epsilon: float) -> None:
    model, weight = linear(bias=0.3)
    x = torch.randn(4, SIZE, dtype=torch.float64)
    labels = (score(model(x)) > 0).long()
    settings = {"epsilon": epsilon, "confirm_small_epsilon": True}
    one = bisection(model, x, labels, "fgsm", bisect={"steps": 1}, **settings)
    assert (one.distance_linf <= epsilon).all()
    assert one.runs.tolist() == [1] * 4
    result = bisection(model, x, labels, "fgsm", bisect={"steps": 40}, **settings)
    nearest = score(model(x)).abs() / weight.abs().sum()
    assert (result.smallest_won >= nearest).all()
    assert (result.smallest_won <= nearest * 1.011).all()
    assert (result.runs < 40).all()


def test_what_no_radius_wins_is_told_with_the_largest() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total * 0 + 1, total * 0], 1)

    x = torch.tensor([[0.5, 0.5], [0.25, 0.5]])
    job = Recorder()
    result = bisection(
        classifier(Constant(), (2,)), x, torch.tensor([0, 0]), "bim", job, epsilon=0.2
    )
    assert not result.success.any()
    assert result.smallest_won.tolist() == [-1, -1]
    assert result.largest_failed.tolist() == [0.5, 0.75]  # reaches every corner of the bounds
    assert result.runs.tolist() == [3, 3]  # 0.2, 0.4 and all
    assert any(message.startswith("bim: ") for _, message in job.warnings)


def test_values_are_counted_in_whole_numbers() -> None:
    model, weight = linear(bias=-3.0, bounds=(0.0, 1.0))
    x = torch.zeros(1, SIZE, dtype=torch.float64)
    order = weight.clamp(min=0).sort(descending=True).values.cumsum(0)
    fewest = int((order <= 3.0).sum()) + 1  # values at 1 that lift the score above zero
    result = bisection(model, x, torch.tensor([0]), "pgd", norm="l0", step_size=1000.0, epsilon=10)
    assert result.success.all()
    assert result.smallest_won.tolist() == [fewest]
    assert result.largest_failed.tolist() == [fewest - 1]


def test_rows_are_searched_by_themselves_and_together() -> None:
    model = network()
    model.module.double()
    model.dtype = torch.float64
    x = images(6).double()
    labels = predicted(model, x)
    labels[2] = (labels[2] + 1) % 5
    counting = counted(model)
    whole = bisection(model, x, labels, "bim", epsilon=0.02, steps=5)
    passes = counting.rows
    assert (whole.runs <= 16).all()
    assert torch.equal(whole.success, predicted(model, whole.adversarial) != labels)
    assert torch.equal(whole.adversarial[2], x[2])
    assert (whole.smallest_won[2], whole.runs[2], whole.queries[2]) == (0, 0, 2)
    counting.rows = 0
    for row in range(6):
        part = slice(row, row + 1)
        alone = bisection(model, x[part], labels[part], "bim", None, (row,), epsilon=0.02, steps=5)
        torch.testing.assert_close(alone.adversarial[0], whole.adversarial[row])
        assert float(alone.largest_failed) == pytest.approx(float(whole.largest_failed[row]))
        assert float(alone.queries) == float(whole.queries[row])
    assert counting.rows == passes


def test_no_larger_radius_is_claimed_than_the_attack_wins_at() -> None:
    model, x = network(), images(12)
    labels = predicted(model, x)
    result = bisection(model, x, labels, "pgd", norm="l2", steps=10, bisect={"steps": 8})
    won = result.success
    assert won.all()
    assert torch.equal(won, predicted(model, result.adversarial) != labels)
    radii = {"epsilon": result.largest_failed[result.largest_failed > 0]}
    rows = result.largest_failed > 0
    batch = Batch(
        x[rows], Targets.classes(labels[rows]), tuple(torch.nonzero(rows)[:, 0].tolist()), radii
    )
    params = PGD.params_type(norm="l2", steps=10, confirm_small_epsilon=True)
    assert not PGD().run(model, batch, params, Job()).success.any()


def test_attacks_without_a_radius_are_refused() -> None:
    model, x = network(), images(1)
    for plugin in ("deepfool", "hop_skip_jump", "corruptions", "universal_perturbation"):
        with pytest.raises(InvalidRequest, match="takes no radius for each row"):
            bisection(model, x, predicted(model, x), plugin)


def test_a_served_call_searches_by_scores_alone() -> None:
    model, x = network(), images(3)
    labels = predicted(model, x)
    attack = {"plugin": "square", "params": {"queries": 100}}
    with serve(None, {"net": model}) as address, interpret_client.connect(address) as client:
        result = client.run(
            "bisection", "net", x.numpy(), target=labels.tolist(), params={"attack": attack}, seed=1
        )
        found = torch.from_numpy(result.tensors["adversarial"])
        assert (result.metrics["smallest_won"] > 0).all()
        assert (predicted(model, found) != labels).all()
        assert result.provenance.params["attack"]["params"]["p"] == 0.8

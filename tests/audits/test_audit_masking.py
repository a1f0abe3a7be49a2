"""Signs of masked gradients: networks that hide them, from the file to the finding."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from audit_runs import Net, Run, samples, save, working
from report_findings import make
from torch import Tensor, nn

from interpret_plugins.attacks.masking import PHRASES
from interpret_server.audits import masking, phrases
from interpret_server.audits.masking import Finding
from interpret_server.audits.spec import AuditAttack, AuditSpec, Threat

LINF = (Threat(norm="linf", epsilons=(0.05, 0.15)),)
THOROUGH = (
    AuditAttack(plugin="apgd", params={"loss": "margin", "target_classes": 3, "steps": 20}),
    AuditAttack(plugin="square", params={"queries": 300}),
)


class Quantised(Net):
    """Sees eight levels of grey; rounding has no gradient."""

    def __init__(self) -> None:
        super().__init__(before=lambda x: torch.round(x * 7) / 7)


class Stochastic(Net):
    """Adds noise whenever it answers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


class Saturated(Net):
    """Ends in a softmax that is 1 and 0 to the last bit."""

    def __init__(self) -> None:
        super().__init__(after=lambda z: torch.softmax(3000 * z, 1))


class Detached(Net):
    """Its gradient is that of a faint branch that points elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()) + 0.01 * super().forward(1 - x)


class Decision(nn.Module):
    """Names the winner alone, on a way that depends on the data, so that it has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Net().first, Net().second

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) > 2:
            x = x / 2
        return self.second(torch.relu(self.first(x)).flatten(1)).argmax(1)


async def audited(
    module: nn.Module, folder: Path, *attacks: AuditAttack, **manifest: object
) -> tuple[Run, tuple[Finding, ...]]:
    """An audit by the suite quick, or by some attacks."""
    images, labels = samples(module, 8)
    async with working(save(module, folder / "net.pt"), **manifest) as (worker, model):
        spec = AuditSpec(model="net", suite="quick", attacks=attacks, threats=LINF)
        run = await Run(worker, model, spec, images, labels).go()
    return run, masking.find(run.findings())


def test_every_sign_that_attacks_tell_is_known():
    known = (phrases.ZERO_GRADIENT, phrases.MISLEADING, phrases.SATURATED, phrases.RANDOM)
    assert all(told.startswith(known) for told in PHRASES)
    assert all(any(told.startswith(phrase) for told in PHRASES) for phrase in known)


async def test_an_ordinary_network_shows_no_sign(tmp_path):
    _, found = await audited(Net(seed=4), tmp_path, *THOROUGH)
    assert found == ()


async def test_quantised_inputs_show_zero_gradients(tmp_path):
    _, found = await audited(Quantised(), tmp_path)
    by_code = {item.code: item for item in found}
    zero = by_code["zero_gradient"]
    assert zero.figures == {"samples": 8, "attacked": 8, "share": 1.0}
    assert zero.rows == tuple(range(8))
    assert "black_box_beats_white_box" in by_code


async def test_a_stochastic_layer_shows_answers_at_random(tmp_path):
    _, found = await audited(Stochastic(), tmp_path)
    assert found[0].code == "random_answers"
    assert found[0].rows == tuple(range(8))


async def test_a_saturated_softmax_shows_zero_gradients(tmp_path):
    _, found = await audited(Saturated(), tmp_path, output={"kind": "logits"})
    assert {"zero_gradient", "saturated_softmax"} <= {item.code for item in found}


async def test_a_softmax_that_is_known_as_such_hides_nothing(tmp_path):
    _, found = await audited(Saturated(), tmp_path, *THOROUGH)
    assert not {"zero_gradient", "unbounded_attack_fails"} & {item.code for item in found}


async def test_a_detached_branch_loses_to_answers_alone(tmp_path):
    run, found = await audited(Detached(), tmp_path)
    assert "misleading_gradient" in {item.code for item in found}
    signs = [item for item in found if item.code == "black_box_beats_white_box"]
    assert [item.figures["epsilon"] for item in signs] == [0.05, 0.15]
    for sign in signs:
        key = f"linf:{sign.figures['epsilon']}:square"
        won = [item.row for done in run.of(key) for item in done.outcomes if item.confirmed]
        assert list(sign.rows) == won
        assert sign.figures["attacks"] == ["square"]


@pytest.mark.parametrize("scores", [True, False], ids=["cut from its graph", "no graph"])
async def test_a_model_that_ends_in_argmax_is_audited_by_answers(tmp_path, scores):
    net, path = Net(after=lambda z: z.argmax(1)), tmp_path / "net.pt"
    if scores:
        save(net, path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(Decision()).save(str(path))
    images, labels = samples(Net(), 4)
    spec = AuditSpec(
        model="net", suite="black_box", threats=LINF, budget={"queries": 300}, batch_size=3
    )
    output = None if scores else {"classes": 4}
    async with working(path, **({"output": output} if output else {})) as (worker, model):
        assert ("scores" in model.capabilities) is scores
        run = await Run(worker, model, spec, images, labels).go()
    nearest = run.of("minimal:linf:hop_skip_jump")
    outcomes = [item for done in nearest for item in done.outcomes]
    assert [item.confirmed for item in outcomes] == [True] * 4
    assert all(item.margin != item.margin for item in outcomes)  # no scores, no margin
    with torch.no_grad():
        for done in nearest:
            won = Net()(torch.from_numpy(done.examples.copy())).argmax(1)
            assert won.tolist() == [item.decision for item in done.outcomes]
    assert bool(run.plan.notes) is not scores
    assert any(stage.plugin == "square" for stage in run.plan.stages) is scores
    assert masking.find(run.findings()) == ()


def signs(attacks, rows=20, epsilons=(0.1, 0.3), **fields):
    """The signs in made-up findings: stage -> row -> distance of its example, or None."""
    findings = make([0] * rows, [0] * rows, attacks, batch_size=rows, **fields)
    stages = tuple(
        stage.model_copy(update={"gradients": stage.attack != "square"})
        for stage in findings.audit.plan.stages
    )
    spec = AuditSpec(model="net", threats=(Threat(norm="linf", epsilons=epsilons),))
    plan = findings.audit.plan.model_copy(update={"stages": stages})
    audit = replace(findings.audit, plan=plan, spec=spec)
    return {item.code: item for item in masking.find(replace(findings, audit=audit))}


def standing(*rows):
    return dict.fromkeys(rows)


def test_answers_alone_count_where_no_gradient_led_as_near():
    everyone = standing(*range(20))
    found = signs(
        {
            "linf:0.1:pgd": everyone | {3: 0.05},
            "linf:0.1:square": {
                row: 0.1 if row in (4, 5) else None for row in range(20) if row != 3
            },
            "linf:0.3:pgd": everyone | {3: 0.05, 5: 0.09},  # gradients led nearer after all
        }
    )
    sign = found["black_box_beats_white_box"]
    assert sign.rows == (4,)
    assert (sign.figures["epsilon"], sign.figures["attacked"]) == (0.1, 20)


def test_answers_alone_that_came_first_say_nothing_of_gradients():
    found = signs(
        {
            "linf:0.1:square": {row: 0.1 if row < 9 else None for row in range(20)},
            "linf:0.1:pgd": dict.fromkeys(range(9, 20), 0.1),
        }
    )
    assert "black_box_beats_white_box" not in found


def test_one_sample_in_many_hundreds_is_no_sign():
    everyone = standing(*range(600))
    attacks = {"linf:0.1:pgd": everyone, "linf:0.1:square": everyone | {7: 0.1}}
    assert "black_box_beats_white_box" not in signs(attacks, 600)
    attacks["linf:0.1:square"] |= {8: 0.1}
    assert signs(attacks, 600)["black_box_beats_white_box"].rows == (7, 8)


def test_samples_that_stand_without_a_radius_are_named():
    sign = signs({"unbounded:linf": {0: 0.9, 2: None, 5: None}})["unbounded_attack_fails"]
    assert sign.rows == (2, 5)
    assert sign.figures == {"samples": 2, "correct": 20}
    assert signs({"unbounded:linf": {0: 0.9}}) == {}


@pytest.mark.parametrize(
    ("fallen", "later", "epsilons", "seen"),
    [
        (5, 0, (0.1, 0.3), True),
        (5, 1, (0.1, 0.3), False),
        (1, 0, (0.1, 0.3), False),  # hardly any fell before
        (15, 0, (0.1, 0.3), False),  # few are left
        (5, 0, (0.1, 0.15), False),  # hardly any more room
    ],
)
def test_more_room_that_helps_nothing_is_a_sign(fallen, later, epsilons, seen):
    smaller, larger = (f"linf:{epsilon}:pgd" for epsilon in epsilons)
    found = signs(
        {
            smaller: {row: 0.1 if row < fallen else None for row in range(20)},
            larger: {row: 0.15 if row < fallen + later else None for row in range(fallen, 20)},
        },
        epsilons=epsilons,
    )
    assert ("larger_radius_not_easier" in found) is seen
    if seen:
        assert found["larger_radius_not_easier"].rows == tuple(range(5, 20))


def test_claims_without_confirmation_are_counted():
    attacks = {"linf:0.1:pgd": standing(*range(20)) | {0: 0.1}}
    claims = frozenset({("linf:0.1:pgd", 3), ("linf:0.1:pgd", 7)})
    sign = signs(attacks, claims=claims)["unconfirmed_successes"]
    assert sign.figures == {"claimed": 3, "unconfirmed": 2, "samples": 2}
    assert sign.rows == (3, 7)

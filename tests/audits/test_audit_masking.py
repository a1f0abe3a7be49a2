"""Signs of masked gradients: networks that hide them, from the file to the finding."""

import warnings
from pathlib import Path

import pytest
import torch
from audit_runs import Net, Run, samples, save, working
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
    assert all(phrase.startswith(phrases.KNOWN) for phrase in PHRASES)
    assert all(any(told.startswith(known) for told in PHRASES) for known in phrases.KNOWN)


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

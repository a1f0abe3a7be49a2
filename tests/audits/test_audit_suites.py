"""Suites at work: what they find, against the plugins that they are made of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audit_runs import SHAPE, Net, Run, asking, samples, save, working

from interpret_server.audits.plan import StageKind
from interpret_server.audits.spec import AuditAttack, AuditSpec, Budget, Threat
from interpret_server.audits.standing import broken_at, closest, norms_of

LINF = (Threat(norm="linf", epsilons=(0.04,)),)


def broken(run: Run) -> set[int]:
    outcomes = [item for done in run.results for item in done.outcomes]
    return broken_at(closest(outcomes, norms_of(run.plan), "linf"), "linf", 0.04)


async def test_standard_finds_what_auto_attack_finds(tmp_path):
    net = Net(after=lambda z: z[:, :2])
    images, labels = samples(net, 6)
    suite = AuditSpec(
        model="net",
        suite="standard",
        threats=LINF,
        minimal=False,
        budget=Budget(queries=100),
    )
    whole = asking(AuditAttack(plugin="auto_attack", params={"queries": 100}), threats=LINF)
    async with working(save(net, tmp_path / "net.pt")) as (worker, model):
        one = await Run(worker, model, suite, images, labels).go()
        two = await Run(worker, model, whole, images, labels).go()
    assert broken(one) == broken(two)
    assert 0 < len(broken(one)) < 6


async def test_corruptions_of_images(tmp_path):
    net = Net()
    images, labels = samples(net, 2)
    spec = AuditSpec(model="net", suite="corruption")
    async with working(save(net, tmp_path / "net.pt")) as (worker, model):
        run = Run(worker, model, spec, images, labels)
        stages = [run.plan.stages[0]]
        stages += [run.plan.stage(f"corruption:gaussian_noise:{level}") for level in (1, 5)]
        run.plan = run.plan.model_copy(update={"stages": tuple(stages)})
        run.runner = type(run.runner)(worker, model, spec, run.plan)
        await run.go()
    assert {stage.kind for stage in stages[1:]} == {StageKind.CORRUPTION}
    for done in run.results[1:]:
        assert [item.row for item in done.outcomes] == [0, 1]  # each by itself
        won = [item.decision for item in done.outcomes if item.confirmed]
        examples = np.empty((0, *SHAPE), np.float32) if done.examples is None else done.examples
        with torch.no_grad():
            assert net(torch.from_numpy(examples)).argmax(1).tolist() == won


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "clean", "robust"), [("cln", 29, 0), ("adv", 30, 28)])
async def test_mnist_classifiers_are_told_apart(shared_data: Path, name, clean, robust):
    with np.load(shared_data / "images/mnist_test.npz") as stored:
        images = stored["x"][:30].astype(np.float32) / 255
        labels = stored["y"][:30].astype(np.int64)
    spec = AuditSpec(
        model="net",
        suite="quick",
        threats=(Threat(norm="linf", epsilons=(0.3,)),),
        budget=Budget(queries=100),
    )
    path = shared_data / f"models/mnist/advertorch_lenet5_{name}.pt"
    async with working(path, shape=(1, 28, 28)) as (worker, model):
        run = await Run(worker, model, spec, images, labels).go()
    correct = {item.row for item in run.results[0].samples if item.correct}
    outcomes = [item for done in run.results for item in done.outcomes]
    fallen = broken_at(closest(outcomes, norms_of(run.plan), "linf"), "linf", 0.3)
    assert len(correct) == clean
    assert len(correct - fallen) == robust
    unbounded = [item for done in run.of("unbounded:linf") for item in done.outcomes]
    assert all(item.confirmed for item in unbounded)
    assert all(item.confirmed for item in outcomes if item.claimed)

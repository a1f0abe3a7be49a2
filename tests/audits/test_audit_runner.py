"""Units of an audit on real small files."""

import asyncio
import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from audit_runs import SHAPE, Net, Run, asking, samples, save, warned, working
from PIL import Image

from interpret_server.audits import phrases
from interpret_server.audits.plan import StageKind, Unit
from interpret_server.audits.records import UnitResult, digest_of
from interpret_server.audits.spec import AuditAttack, AuditSpec, Threat
from interpret_server.errors import InvalidRequest
from interpret_server.plugin import Kind, Params, Plugin, TargetKind, output

LINF = (Threat(norm="linf", epsilons=(0.02, 0.08)),)
L2 = (Threat(norm="l2", epsilons=(0.3,)),)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Net(), tmp_path_factory.mktemp("net") / "net.pt")


def alike(one: UnitResult, other: UnitResult) -> bool:
    """The same bit for bit, but for the seconds."""
    examples = [None if item.examples is None else item.examples.tobytes() for item in (one, other)]
    plain = [repr(replace(item, examples=None, seconds=0.0)) for item in (one, other)]
    return plain[0] == plain[1] and examples[0] == examples[1]


async def test_the_clean_stage_keeps_what_the_file_answers(file):
    net = Net()
    images, labels = samples(net, 5)
    labels[3] = (labels[3] + 1) % 4
    async with working(file) as (worker, model):
        run = Run(worker, model, asking("fgsm", threats=LINF, batch_size=3), images, labels)
        first, second = [await run.step(Unit(batch, 0)) for batch in (0, 1)]
    found = [*first.samples, *second.samples]
    assert [item.row for item in found] == [0, 1, 2, 3, 4]
    assert [item.correct for item in found] == [True, True, True, False, True]
    with torch.no_grad():
        chances = net(torch.from_numpy(images)).softmax(1).amax(1)
    assert [item.confidence for item in found] == pytest.approx(chances.tolist(), rel=1e-5)
    assert [item.digest for item in found] == list(map(digest_of, images, labels.tolist()))
    assert np.array_equal(np.concatenate([first.examples, second.examples]), images)
    assert not first.warnings + second.warnings


async def test_only_samples_that_stand_are_attacked(file):
    images, labels = samples(Net(), 12)
    labels[0] = (labels[0] + 1) % 4
    async with working(file) as (worker, model):
        run = await Run(worker, model, asking("fgsm", "pgd", threats=LINF), images, labels).go()
    broken: set[int] = set()
    for stage in run.plan.stages[1:-1]:
        (done,) = run.of(stage.key)
        assert [item.row for item in done.outcomes] == sorted(set(range(1, 12)) - broken)
        broken |= {item.row for item in done.outcomes if item.confirmed}
    assert 0 < len(broken)


async def test_what_is_confirmed_is_what_the_network_itself_says(file):
    net = Net()
    images, labels = samples(net, 8)
    async with working(file) as (worker, model):
        run = await Run(worker, model, asking("pgd", "apgd", threats=L2), images, labels).go()
    counted = 0
    for done in run.results[1:-1]:
        won = [item for item in done.outcomes if item.confirmed]
        examples = np.empty((0, *SHAPE)) if done.examples is None else done.examples
        for outcome, example in zip(won, examples, strict=True):
            with torch.no_grad():
                (logits,) = net(torch.from_numpy(example)[None])
            assert int(logits.argmax()) == outcome.decision != labels[outcome.row]
            margin = float(logits[outcome.decision] - logits[labels[outcome.row]])
            assert outcome.margin == pytest.approx(margin, abs=1e-5)
            delta = (example.astype(np.float64) - images[outcome.row]).ravel()
            assert outcome.l0 == np.count_nonzero(delta)
            assert outcome.l1 == pytest.approx(np.abs(delta).sum(), rel=1e-12)
            assert outcome.l2 == pytest.approx(np.linalg.norm(delta), rel=1e-12)
            assert outcome.linf == np.abs(delta).max()
            assert outcome.l2 <= 0.3 * (1 + 1e-6)
            assert outcome.digest == digest_of(example, int(labels[outcome.row]))
            assert outcome.queries > 2
            counted += 1
    assert counted


async def test_a_batch_without_work_makes_no_call(file):
    images, labels = samples(Net(), 3)
    async with working(file) as (worker, model):
        run = Run(worker, model, asking("pgd", threats=LINF), images, (labels + 1) % 4)
        run.results.append(await run.step(Unit(0, 0)))
        worker.run = None  # type: ignore[method-assign]  # no call may be made
        done = await run.step(Unit(0, 1))
    assert (done.outcomes, done.examples, done.warnings) == ((), None, ())


async def test_the_same_unit_gives_the_same_bits_in_another_worker_and_beside_others(file):
    images, labels = samples(Net(), 6)
    spec = asking(
        AuditAttack(plugin="square", params={"queries": 60}),
        AuditAttack(plugin="pgd", params={"steps": 5}),
        AuditAttack(plugin="fab", name="nearest", params={"steps": 5}),
        threats=LINF,
        batch_size=4,
        seed=(1 << 63) - 2,
    )
    async with working(file) as (worker, model):
        quiet = await Run(worker, model, spec, images, labels).go()
    async with working(file) as (worker, model):
        one, two = (
            Run(worker, model, spec, images, labels),
            Run(worker, model, spec, images, labels),
        )
        await asyncio.gather(one.go(), two.go())
    for run in (one, two):
        assert all(map(alike, quiet.results, run.results))


async def test_smallest_changes_are_sought_for_every_sample(file):
    images, labels = samples(Net(), 6)
    spec = AuditSpec(model="net", suite="standard", threats=LINF)
    async with working(file) as (worker, model):
        run = Run(worker, model, spec, images, labels)
        number = next(i for i, s in enumerate(run.plan.stages) if s.kind is StageKind.MINIMAL)
        run.results.append(await run.step(Unit(0, 0)))
        done = await run.step(Unit(0, number))
    assert [item.row for item in done.outcomes] == list(range(6))
    assert all(item.confirmed and item.margin > 0 for item in done.outcomes)
    assert len(done.examples) == 6


async def test_progress_is_passed_on(file):
    images, labels = samples(Net(), 3)
    told: list[tuple[int, int]] = []
    spec = asking(AuditAttack(plugin="random_noise", params={"samples": 20}), threats=LINF)
    async with working(file) as (worker, model):
        run = Run(worker, model, spec, images, labels)
        run.results.append(await run.step(Unit(0, 0)))
        await run.step(Unit(0, 1), lambda done, total: told.append((done, total)))
    assert told
    assert told == sorted(told)
    assert {total for _, total in told} == {20}


async def test_cancelling_closes_the_call_at_once(file):
    images, labels = samples(Net(), 3)
    spec = asking(AuditAttack(plugin="random_noise", params={"samples": 100_000}), threats=LINF)
    begun = asyncio.Event()
    async with working(file) as (worker, model):
        run = Run(worker, model, spec, images, labels)
        run.results.append(await run.step(Unit(0, 0)))
        task = asyncio.create_task(run.step(Unit(0, 1), lambda *_: begun.set()))
        await begun.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        async with asyncio.timeout(10):
            await worker._calls.empty()  # the worker has let go of it


async def test_warnings_name_samples(file):
    images, labels = samples(Net(), 5)
    async with working(file) as (worker, model):
        spec = AuditSpec(model="net", suite="black_box", threats=L2)
        run = Run(worker, model, spec, images, labels)
        run.plan = run.plan.model_copy(
            update={"stages": (run.plan.stages[0], _without_tries(run.plan.stages))}
        )
        run.runner = type(run.runner)(worker, model, spec, run.plan)
        labels[1] = (labels[1] + 1) % 4
        await run.go()
    (warning,) = warned(run.results)
    assert "no starting point" in warning.message
    assert warning.rows == (0, 2, 3, 4)


def _without_tries(stages):
    found = next(stage for stage in stages if stage.attack == "hop_skip_jump")
    return found.model_copy(update={"params": {**found.params, "tries": 0}})


async def test_a_file_that_answers_at_random_is_reported(tmp_path):
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) + torch.rand_like(x[:, 0, 0, :4])

    images, labels = samples(Net(), 4)
    async with working(save(Noisy(), tmp_path / "net.pt")) as (worker, model):
        run = Run(worker, model, asking("pgd", threats=LINF), images, labels)
        done = await run.step(Unit(0, 0))
        assert alike(done, await run.step(Unit(0, 0)))
        run.results.append(done)
        assert alike(await run.step(Unit(0, 1)), await run.step(Unit(0, 1)))
    assert {item.message for item in done.warnings} >= {phrases.ANSWERS_AT_RANDOM}
    assert "deterministic" not in model.capabilities


async def test_parameters_that_do_not_suit_the_model_are_named_as_the_caller_wrote_them(tmp_path):
    net = Net(after=lambda z: z[:, :2])
    images, labels = samples(net, 2)
    attacks = (AuditAttack(plugin="fgsm"), AuditAttack(plugin="pgd", params={"loss": "dlr"}))
    spec = asking(*attacks, threats=LINF)
    async with working(save(net, tmp_path / "net.pt")) as (worker, model):
        run = Run(worker, model, spec, images, labels)
        run.results.append(await run.step(Unit(0, 0)))
        with pytest.raises(InvalidRequest, match=r"attacks\[1\]\.params\.loss: dlr takes"):
            await run.step(Unit(0, 2))


class LiarParams(Params):
    norm: Literal["linf"] = "linf"
    epsilon: float = 0.1
    shift: float = 0.0


@dataclass(frozen=True)
class Lies:
    adversarial: torch.Tensor = output("The inputs, shifted away from grey or towards it.")
    success: torch.Tensor = output("True.")


class Liar(Plugin[LiarParams, Lies]):
    """Claims to have won every row, by a shift towards grey, or away from it."""

    name = "liar"
    kind = Kind.ATTACK
    target_kinds = frozenset({TargetKind.CLASS})

    def run(self, model, batch, params, job):
        moved = batch.inputs + params.shift * torch.sign(0.5 - batch.inputs)
        return Lies(moved, torch.ones(len(batch), dtype=torch.bool))


async def lies(file, epsilon, shift):
    images, labels = samples(Net(), 8)
    attack = AuditAttack(plugin="liar", params={"shift": shift})
    threats = (Threat(norm="linf", epsilons=(epsilon,)),)
    async with working(file, Liar) as (worker, model):
        run = await Run(worker, model, asking(attack, threats=threats), images, labels).go()
    return run.results[1]


@pytest.mark.parametrize(
    ("epsilon", "shift", "message"),
    [
        pytest.param(0.1, 0.0, phrases.UNCONFIRMED, id="classified as before"),
        pytest.param(0.1, 0.2, phrases.OUTSIDE, id="outside the ball"),
        pytest.param(1.0, -0.6, phrases.OUTSIDE, id="outside the bounds"),
        pytest.param(1.0, 1e39, phrases.OUTSIDE, id="no numbers"),
    ],
)
async def test_claims_that_do_not_hold_are_not_counted(file, epsilon, shift, message):
    done = await lies(file, epsilon, shift)
    assert all(item.claimed and not item.confirmed for item in done.outcomes)
    assert all(item.digest == "" and item.decision == -1 for item in done.outcomes)
    assert done.examples is None
    assert [(item.message, item.rows) for item in done.warnings] == [(message, tuple(range(8)))]


async def test_encoded_images_become_the_rows_that_are_kept(file):
    levels = np.random.default_rng(0).integers(0, 256, (3, 6, 6), dtype=np.uint8)
    images = (levels[:, None] / np.float32(255)).astype(np.float32)
    with torch.no_grad():
        labels = Net()(torch.from_numpy(images)).argmax(1).numpy()
    spec = asking("pgd", threats=LINF)
    async with working(file) as (worker, model):
        run = Run(worker, model, spec, images, labels)
        sent = replace(run.state(0), given=tuple(map(png, levels)))
        encoded = await run.runner.run(Unit(0, 0), sent, lambda *_: None)
        again = await Run(worker, model, spec, encoded.examples, labels).step(Unit(0, 0))
    assert np.allclose(encoded.examples, images, rtol=0, atol=1e-6)
    assert alike(encoded, again)  # what is kept is what is answered


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="png")
    return buffer.getvalue()

"""Replays of reports: true ones hold, and whatever is changed in one is named."""

import asyncio
import csv
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_runs import MANIFEST, Net, samples, save

from interpret_server.audits.ingest import DataChunk
from interpret_server.audits.manager import Audits
from interpret_server.audits.records import State, digest_of
from interpret_server.audits.replay import Replay, Replayer
from interpret_server.audits.spec import AuditAttack, AuditSpec, Threat
from interpret_server.data.arrays import as_array
from interpret_server.engine.local import LocalWorker
from interpret_server.errors import InvalidRequest
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

SPEC = AuditSpec(
    model="net",
    attacks=(AuditAttack(plugin="pgd", params={"steps": 5}), AuditAttack(plugin="random_noise")),
    threats=(Threat(norm="linf", epsilons=(0.02, 0.2)),),
    batch_size=5,
    seed=3,
)
COUNT = 12


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def worker(loop: asyncio.AbstractEventLoop) -> Iterator[LocalWorker]:
    worker = LocalWorker(Registry.installed(), device="cpu")
    yield worker
    loop.run_until_complete(worker.close(0.0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Net(), tmp_path_factory.mktemp("net") / "net.pt")


@pytest.fixture(scope="module")
def true(
    loop: asyncio.AbstractEventLoop,
    worker: LocalWorker,
    file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The bundle of an audit that was made as a server makes it."""
    root = tmp_path_factory.mktemp("audits")
    images, labels = samples(Net(), COUNT)
    labels[7] = (labels[7] + 1) % 4

    async def chunks() -> AsyncIterator[DataChunk]:
        yield DataChunk(as_array(images), tuple(labels.tolist()))

    async def make() -> Path:
        await worker.load("net", file, Manifest.model_validate(MANIFEST))
        audits = Audits(worker, root=root)
        await audits.start()
        try:
            audit = await audits.create(SPEC, chunks())
            async for seen in audits.watch(audit.id):
                audit = seen
            assert audit.state is State.FINISHED, audit.error
            return (await audits.report(audit.id, "json")).parent
        finally:
            await audits.close(1.0)

    return loop.run_until_complete(make())


@pytest.fixture
def bundle(true: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(true, tmp_path / "report"))


@pytest.fixture
def play(loop: asyncio.AbstractEventLoop, worker: LocalWorker) -> Callable[..., Replay]:
    def run(folder: Path, rerun: float = 0.0, **fields: Any) -> Replay:
        return loop.run_until_complete(Replayer(folder, worker, **fields).run(rerun))

    return run


def lines(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rewrite(folder: Path, name: str, changed: list[dict[str, str]]) -> None:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(changed[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(changed)


def broken(folder: Path) -> dict[str, str]:
    """The first confirmed outcome."""
    return next(line for line in lines(folder, "outcomes.csv") if line["confirmed"] == "true")


def example_of(folder: Path, outcome: dict[str, str]) -> tuple[Path, int]:
    """The file with an outcome's example, and its place there."""
    plan = json.loads((folder / "report.json").read_text())["plan"]
    stage = [item["key"] for item in plan["stages"]].index(outcome["stage"])
    batch = int(outcome["row"]) // plan["batch_size"]
    mates = [
        line["row"]
        for line in lines(folder, "outcomes.csv")
        if line["stage"] == outcome["stage"]
        and line["confirmed"] == "true"
        and int(line["row"]) // plan["batch_size"] == batch
    ]
    return folder / f"examples/{batch:06}-{stage:03}.npy", mates.index(outcome["row"])


def told(found: Replay) -> str:
    return "\n".join(map(str, found.complaints))


def test_a_true_report_holds(true: Path, play: Callable[..., Replay]):
    steps: list[tuple[int, int]] = []
    found = play(true, 1.0, report=lambda done, total: steps.append((done, total)))
    assert (found.holds, found.notes) == (True, ()), told(found)
    claimed = sum(line["confirmed"] == "true" for line in lines(true, "outcomes.csv"))
    assert (found.samples, found.repeated) == (COUNT, COUNT)
    assert found.examples == found.confirmed == claimed > 5
    assert steps == [(done, 6) for done in range(7)]


def test_a_share_of_the_batches_is_run_again(true: Path, play: Callable[..., Replay]):
    assert play(true, 0.01).repeated in (5, 2)
    assert play(true).repeated == 0
    with pytest.raises(InvalidRequest, match="is no share"):
        play(true, 1.5)


def test_a_changed_sample_is_named(bundle: Path, play: Callable[..., Replay]):
    rows = np.load(bundle / "inputs/000001.npy")
    rows[2, 0, 0, 0] = 1 - rows[2, 0, 0, 0]
    np.save(bundle / "inputs/000001.npy", rows)
    found = told(play(bundle))
    assert "inputs/000001.npy is not the file that the report was made of" in found
    assert "sample 7, clean: its values or its label are not those that were audited" in found
    assert "the samples are not those of the report's data_sha256" in found


def test_a_changed_label_is_named(bundle: Path, play: Callable[..., Replay]):
    changed = lines(bundle, "samples.csv")
    changed[4] |= {"label": str((int(changed[4]["label"]) + 1) % 4), "correct": "false"}
    rewrite(bundle, "samples.csv", changed)
    assert "sample 4, clean: its values or its label are not those" in told(play(bundle))


def test_a_verdict_that_does_not_follow_from_the_outcomes_is_named(
    bundle: Path, play: Callable[..., Replay]
):
    changed = lines(bundle, "samples.csv")
    row = int(broken(bundle)["row"])
    changed[row]["linf_0.2_stands"] = "true"
    rewrite(bundle, "samples.csv", changed)
    assert f"sample {row}: samples.csv does not say what its outcomes come to" in told(play(bundle))


def test_a_changed_example_is_named(bundle: Path, play: Callable[..., Replay]):
    outcome = broken(bundle)
    path, place = example_of(bundle, outcome)
    examples = np.load(path)
    examples[place, 0, 1, 1] = np.nextafter(examples[place, 0, 1, 1], np.float32(0.5))
    np.save(path, examples)
    found = told(play(bundle))
    name = f"sample {outcome['row']}, {outcome['stage']}: "
    assert f"{name}its example is not the one that was found" in found


def test_an_example_that_does_not_fool_is_named_though_its_digest_fits(
    bundle: Path, play: Callable[..., Replay]
):
    outcome = broken(bundle)
    row = int(outcome["row"])
    path, place = example_of(bundle, outcome)
    examples = np.load(path)
    original = np.load(bundle / f"inputs/{row // 5:06}.npy")[row % 5]
    examples[place] = original
    np.save(path, examples)
    label = int(lines(bundle, "samples.csv")[row]["label"])
    changed = lines(bundle, "outcomes.csv")
    for line in changed:
        if (line["row"], line["stage"]) == (outcome["row"], outcome["stage"]):
            line["digest"] = digest_of(original, label)
            line |= dict.fromkeys(("l0", "l1", "l2", "linf"), "0.0")
    rewrite(bundle, "outcomes.csv", changed)
    found = told(play(bundle))
    name = f"sample {row}, {outcome['stage']}: "
    assert f"{name}the model's file classifies its example correctly" in found
    assert "threats[0]" in found, "the figures of the report follow from it no more"


def test_an_example_outside_the_ball_is_named(bundle: Path, play: Callable[..., Replay]):
    outcome = broken(bundle)
    row = int(outcome["row"])
    path, place = example_of(bundle, outcome)
    examples = np.load(path)
    original = np.load(bundle / f"inputs/{row // 5:06}.npy")[row % 5]
    moved = 3 * (examples[place].astype(np.float64) - original)
    examples[place] = np.clip(original + moved, 0, 1)
    np.save(path, examples)
    assert "its example lies outside the ball of the threat model" in told(play(bundle))


@pytest.mark.parametrize("gone", ["examples", "inputs"])
def test_missing_files_are_named(bundle: Path, play: Callable[..., Replay], gone: str):
    path = sorted((bundle / gone).iterdir())[0]
    path.unlink()
    found = play(bundle)
    assert f"{gone}/{path.name} is missing" in told(found)
    assert any(item.sample is not None and "missing" in item.problem for item in found.complaints)


def test_a_sample_that_is_silently_left_out_is_named(bundle: Path, play: Callable[..., Replay]):
    changed = lines(bundle, "outcomes.csv")
    outcome = changed.pop(next(n for n, x in enumerate(changed) if x["confirmed"] == "false"))
    rewrite(bundle, "outcomes.csv", changed)
    name = f"sample {outcome['row']}, {outcome['stage']}: "
    assert f"{name}it should have been attacked" in told(play(bundle))


def test_figures_that_do_not_follow_are_named(bundle: Path, play: Callable[..., Replay]):
    document = json.loads((bundle / "report.json").read_text())
    document["clean"]["correct"] += 1
    (bundle / "report.json").write_text(json.dumps(document))
    assert "clean.correct of the report is 12, and comes to 11" in told(play(bundle))


def test_a_page_with_another_figure_is_named(bundle: Path, play: Callable[..., Replay]):
    page = (bundle / "report.html").read_text(encoding="utf-8")
    (figure,) = re.findall(r"clean accuracy<b>([\d.]+%)</b>", page)
    (bundle / "report.html").write_text(page.replace(f"<b>{figure}</b>", "<b>100.0%</b>", 1))
    found = play(bundle)
    assert re.match(r"report\.html has '.*100\.0%.*', and comes to '.*'$", told(found))
    assert (len(found.complaints), found.notes) == (1, ())


def test_a_page_is_not_compared_with_what_does_not_hold(bundle: Path, play: Callable[..., Replay]):
    (bundle / "inputs/000000.npy").unlink()
    found = play(bundle)
    assert "report.html" not in told(found)
    assert found.notes == ("report.html was not compared: what it is drawn from does not hold",)


def test_a_robust_sample_that_falls_when_run_again_is_named(
    bundle: Path, play: Callable[..., Replay]
):
    changed = lines(bundle, "outcomes.csv")
    last = [x for x in changed if x["confirmed"] == "true" and x["stage"] == "linf:0.2:pgd"][-1]
    for line in changed:
        if line is last:
            line |= {"claimed": "false", "confirmed": "false", "decision": ""}
            line |= dict.fromkeys(("digest", "confidence", "margin", "l0", "l1", "l2", "linf"), "")
    rewrite(bundle, "outcomes.csv", changed)
    name = f"sample {last['row']}, {last['stage']}: "
    found = told(play(bundle, 1.0))
    assert f"{name}it stands in the report and falls when run again" in found


def test_another_model_is_refused(
    bundle: Path, play: Callable[..., Replay], file: Path, tmp_path: Path
):
    other = save(Net(seed=1), tmp_path / "other.pt")
    with pytest.raises(InvalidRequest, match=r"other\.pt is another file than the report's"):
        play(bundle, model=other)
    shutil.rmtree(bundle / "model")
    assert "the bundle holds no model; name its file" in str(_refusal(play, bundle))
    assert play(bundle, model=file).holds


def test_what_is_no_report_is_refused(bundle: Path, play: Callable[..., Replay], tmp_path: Path):
    assert "report.json cannot be read" in str(_refusal(play, tmp_path))
    (bundle / "report.json").write_text("[]")
    assert "it is not as it was written" in str(_refusal(play, bundle))


def _refusal(play: Callable[..., Replay], folder: Path) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        play(folder)
    return caught.value

"""Audits as jobs: created, run, watched, stopped, gone on with, deleted and reported."""

import asyncio
import dataclasses
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_fakes import SHAPE, array, tree
from audit_workers import KeepingWorker, made_up

from interpret_server.audits.ingest import DataChunk, StoredSet
from interpret_server.audits.manager import Audits
from interpret_server.audits.plan import Unit
from interpret_server.audits.records import Audit, State
from interpret_server.audits.report import bundle
from interpret_server.audits.spec import AuditSpec
from interpret_server.cli import _audits
from interpret_server.config import Settings
from interpret_server.data import DataRoot
from interpret_server.errors import (
    FailedPrecondition,
    InterpretError,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)

ROWS = np.random.default_rng(1).random((10, *SHAPE), dtype=np.float32)
LABELS = tuple(range(3)) * 3 + (0,)
SPEC: dict[str, Any] = {
    "model": "net",
    "threats": [{"norm": "linf", "epsilons": [0.1, 0.3]}],
    "attacks": [{"plugin": "pgd"}],
    "batch_size": 4,
}


def spec(**changes: Any) -> AuditSpec:
    return AuditSpec.model_validate(SPEC | changes)


async def data(*, rows: Any = ROWS, size: int = 3) -> AsyncIterator[DataChunk]:
    for first in range(0, len(rows), size):
        yield DataChunk(array(rows[first : first + size]), LABELS[first : first + size])


class Bench:
    """Servers that come and go over one folder and one worker."""

    def __init__(self, folder: Path, database: str) -> None:
        (folder / "server").mkdir()
        (folder / "data").mkdir()
        self.folder, self.database = folder, database
        self.root = folder / "audits"
        self.worker = KeepingWorker(folder / "server")
        self.units: list[Unit] = []  # as they began, over all servers
        self.open: list[Audits] = []

    async def serve(self, started: Callable[[Unit], Any] | None = None, **options: Any) -> Audits:
        def note(unit: Unit) -> Any:
            self.units.append(unit)
            return None if started is None else started(unit)

        steps = options.pop("steps", 0)
        audits = Audits(
            self.worker,  # type: ignore[arg-type]
            root=self.root,
            database=self.database,
            make_runner=made_up(note, steps),
            waits=options.pop("waits", (0.0, 0.0)),
            **options,
        )
        await audits.start()
        self.open.append(audits)
        return audits

    async def close(self, audits: Audits) -> None:
        self.open.remove(audits)
        await audits.close(0.0)


@pytest.fixture(autouse=True)
def _plain_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than the rest of a small audit."""
    if "html" not in request.node.name:
        monkeypatch.setattr(bundle.html, "render", lambda document, pictures: "a page")


@pytest.fixture
async def bench(tmp_path: Path, database: str) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, database)
    yield bench
    for audits in bench.open:
        await audits.close(0.0)


@pytest.fixture
def sqlite_bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, f"sqlite:///{tmp_path / 'audits.sqlite'}")


async def final(audits: Audits, audit: Audit) -> Audit:
    async with asyncio.timeout(60):
        seen = [item async for item in audits.watch(audit.id)]
    return seen[-1]


def lasting(path: Path) -> Any:
    return {key: value for key, value in json.loads(path.read_bytes()).items() if key != "run"}


class Gate:
    """Units wait at it until it opens."""

    def __init__(self, at: int) -> None:
        self.reached, self.open, self._at, self._passed = asyncio.Event(), asyncio.Event(), at, 0

    def __call__(self, unit: Unit) -> Any:
        self._passed += 1
        if self._passed == self._at:
            self.reached.set()
            return self.open.wait()
        return None


async def test_an_audit_runs_to_its_report(bench: Bench):
    audits = await bench.serve()
    created = await audits.create(spec(), data())
    assert (created.state, created.done, created.plan.samples) == (State.QUEUED, 0, 10)
    finished = await final(audits, created)
    assert (finished.state, finished.error) == (State.FINISHED, "")
    assert finished.done == finished.total == len(bench.units) == 9
    assert bench.units == list(finished.plan.units())
    assert finished.samples == 10
    first = ROWS.reshape(10, -1)[:, 0]
    assert finished.correct == (first < 0.8).sum()
    assert finished.standing == ((first >= 0.3) & (first < 0.8)).sum()
    assert finished.created <= finished.started <= finished.finished <= time.time()
    assert finished.seconds == pytest.approx(3 * 0.25 + 6 * 0.5)
    assert audits.get(created.id) == finished
    assert bench.worker.hidden == {}
    report = lasting(await audits.report(created.id, "json"))
    assert report["samples"] == 10
    assert report["origin"]["data"] == "sent with the request"
    assert (created.origin.data_sha256, len(finished.origin.data_sha256)) == ("", 64)
    assert report["origin"]["data_sha256"] == finished.origin.data_sha256
    assert report["origin"]["model_sha256"] == bench.worker.info.sha256


async def test_audits_wait_for_their_turn_and_are_listed_newest_first(bench: Bench):
    gate = Gate(1)
    audits = await bench.serve(gate)
    one, two = [await audits.create(spec(title=title), data()) for title in ("one", "two")]
    await gate.reached.wait()
    assert audits.get(one.id).state is State.RUNNING
    assert audits.get(two.id).state is State.QUEUED
    assert [item.spec.title for item in audits.list()] == ["two", "one"]
    gate.open.set()
    assert (await final(audits, two)).state is State.FINISHED
    assert audits.get(one.id).finished < audits.get(two.id).started


async def test_as_many_audits_run_at_once_as_are_allowed(bench: Bench):
    both = asyncio.Barrier(2)
    audits = await bench.serve(lambda unit: both.wait() if unit == (0, 0) else None, running=2)
    made = [await audits.create(spec(), data()) for _ in range(2)]
    assert [(await final(audits, audit)).state for audit in made] == [State.FINISHED] * 2


async def test_a_setting_says_how_many_audits_run_at_once(tmp_path: Path):
    reached = asyncio.Event()

    class SlowWorker(KeepingWorker):
        async def load(self, *args: Any, **fields: Any) -> Any:
            self.loads += 1
            if self.loads == 2:
                reached.set()
            await asyncio.Event().wait()

    make = _audits(Settings(audit_root=tmp_path / "audits", max_running_audits=2))
    assert make is not None
    worker: Any = SlowWorker(tmp_path)
    audits: Any = make(worker, None)
    await audits.start()
    made = [await audits.create(spec(), data()) for _ in range(3)]
    async with asyncio.timeout(60):
        await reached.wait()
    states = [audits.get(audit.id).state for audit in made]
    assert states == [State.RUNNING, State.RUNNING, State.QUEUED]
    await audits.close(0.0)


async def test_two_watchers_see_units_and_steps_to_the_end(bench: Bench, monkeypatch: Any):
    from interpret_server.audits import running

    monkeypatch.setattr(running, "_TOLD_EVERY", 0.0)
    gate = Gate(1)
    audits = await bench.serve(gate, steps=3)
    audit = await audits.create(spec(), data())
    await gate.reached.wait()
    seen: list[list[Audit]] = [[], []]

    async def watch(into: list[Audit]) -> None:
        async for item in audits.watch(audit.id):
            into.append(item)
            if len(into) == 1:
                gate.open.set()

    await asyncio.gather(*map(watch, seen))
    for items in seen:
        assert items[-1].state is State.FINISHED
        assert [item.done for item in items] == sorted(item.done for item in items)
        steps = [item.current for item in items if item.current is not None]
        assert {(step.done, step.total) for step in steps} >= {(1, 3), (2, 3)}
        assert items[-1].current is None


async def test_a_watcher_who_leaves_changes_nothing(bench: Bench):
    audits = await bench.serve()
    audit = await audits.create(spec(), data())
    watcher = audits.watch(audit.id)
    await anext(watcher)
    await watcher.aclose()
    assert (await final(audits, audit)).state is State.FINISHED
    assert audits._watchers == {}
    with pytest.raises(NotFound, match="no audit 'nobody'"):
        await anext(audits.watch("nobody"))


async def test_a_cancelled_audit_loses_the_unit_that_runs_and_goes_on_when_resumed(bench: Bench):
    gate = Gate(6)
    audits = await bench.serve(gate)
    audit = await audits.create(spec(), data())
    await gate.reached.wait()
    cancelled = await audits.cancel(audit.id)
    assert (cancelled.state, cancelled.done) == (State.CANCELLED, 5)
    assert await audits.cancel(audit.id) == cancelled
    assert bench.worker.hidden == {}
    with pytest.raises(FailedPrecondition, match="is cancelled"):
        await audits.report(audit.id, "json")
    assert (await audits.resume(audit.id)).state is State.QUEUED
    finished = await final(audits, audit)
    assert finished.state is State.FINISHED
    units = list(finished.plan.units())
    assert bench.units == [*units[:6], *units[5:]]
    assert finished.started == cancelled.started
    with pytest.raises(FailedPrecondition, match="is finished"):
        await audits.resume(audit.id)
    assert await audits.cancel(audit.id) == finished


async def test_a_waiting_audit_is_cancelled_and_resumed(bench: Bench):
    gate = Gate(1)
    audits = await bench.serve(gate)
    one, two = [await audits.create(spec(), data()) for _ in range(2)]
    await gate.reached.wait()
    assert (await audits.cancel(two.id)).state is State.CANCELLED
    gate.open.set()
    await final(audits, one)
    assert audits.get(two.id).state is State.CANCELLED
    await audits.resume(two.id)
    assert (await final(audits, two)).state is State.FINISHED


async def test_an_audit_is_cancelled_before_it_began(bench: Bench):
    audits = await bench.serve()
    audit = await audits.create(spec(), data())
    assert (await audits.cancel(audit.id)).state is State.CANCELLED
    assert bench.units == []


async def test_a_deleted_audit_leaves_nothing(bench: Bench):
    gate = Gate(3)
    audits = await bench.serve(gate)
    audit = await audits.create(spec(), data())
    watcher = asyncio.create_task(final(audits, audit))
    await gate.reached.wait()
    await audits.delete(audit.id)
    assert (await watcher).state is State.CANCELLED
    assert audits.list() == ()
    assert [name for name in tree(bench.root) if not name.startswith(".lock")] == []
    with pytest.raises(NotFound):
        audits.get(audit.id)
    for ask in (audits.cancel, audits.resume, audits.delete):
        with pytest.raises(NotFound, match=audit.id):
            await ask(audit.id)
    await bench.close(audits)
    assert (await bench.serve()).list() == ()


async def test_the_next_server_goes_on_and_the_report_is_the_same(bench: Bench):
    audits = await bench.serve()
    whole = await final(audits, await audits.create(spec(), data(size=10)))
    expected = lasting(await audits.report(whole.id, "json"))
    bench.units.clear()
    gate = Gate(4)
    await bench.close(audits)
    audits = await bench.serve(gate)
    audit = await audits.create(spec(), data())
    waiting = await audits.create(spec(), data())
    await gate.reached.wait()
    await bench.close(audits)
    assert audits.get(audit.id).state is State.RUNNING
    audits = await bench.serve()
    assert (await final(audits, audit)).state is State.FINISHED
    assert (await final(audits, waiting)).state is State.FINISHED
    assert bench.units.count(bench.units[3]) == 3  # once in vain
    for item in (audit, waiting):
        assert lasting(await audits.report(item.id, "json")) == expected


async def test_closing_lets_the_unit_that_runs_end(sqlite_bench: Bench):
    gate = Gate(4)
    audits = await sqlite_bench.serve(gate)
    audit = await audits.create(spec(), data())
    watcher = asyncio.create_task(final(audits, audit))
    await gate.reached.wait()
    closing = asyncio.create_task(audits.close(30.0))
    with pytest.raises(Unavailable, match="shutting down"):
        await watcher
    gate.open.set()
    await closing
    assert (audits.get(audit.id).state, audits.get(audit.id).done) == (State.RUNNING, 4)
    with pytest.raises(Unavailable):
        await audits.create(spec(), data())


@pytest.mark.parametrize("error", [Unavailable("gone"), Overloaded("full", retry_after=0.0)])
async def test_units_are_tried_again_where_that_may_help(sqlite_bench: Bench, error: Exception):
    failures = [error, error]

    def fail(unit: Unit) -> None:
        if unit == (1, 1) and failures:
            raise failures.pop()

    audits = await sqlite_bench.serve(fail)
    audit = await audits.create(spec(), data())
    assert (await final(audits, audit)).state is State.FINISHED
    assert sqlite_bench.units.count(Unit(1, 1)) == 3
    await audits.close(0.0)


async def test_what_stays_unavailable_fails_the_audit_which_may_be_resumed(sqlite_bench: Bench):
    failures: list[Exception] = [Unavailable("the worker ended")] * 3
    audits = await sqlite_bench.serve(lambda unit: _raise(failures) if unit == (1, 0) else None)
    audit = await audits.create(spec(), data())
    failed = await final(audits, audit)
    assert (failed.state, failed.error) == (State.FAILED, "the worker ended")
    assert failed.done == 3
    assert (await audits.resume(audit.id)).error == ""
    assert (await final(audits, audit)).state is State.FINISHED
    await audits.close(0.0)


def _raise(failures: list[Exception]) -> None:
    if failures:
        raise failures.pop()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            InvalidRequest.field("params.steps", "too many"),
            "clean on samples 0 to 3: params.steps: too many",
        ),
        (OSError(28, "No space left on device"), "files cannot be written: No space left"),
        (RuntimeError("/secret/path"), "internal error; the server's log"),
    ],
)
async def test_other_errors_fail_the_audit_at_once(
    sqlite_bench: Bench, error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
):
    audits = await sqlite_bench.serve(lambda unit: _raise([error]))
    failed = await final(audits, await audits.create(spec(), data()))
    assert failed.state is State.FAILED
    assert sentence in failed.error
    assert "/secret" not in failed.error
    assert len(sqlite_bench.units) == 1
    await audits.close(0.0)


async def test_a_budget_ends_an_audit_between_batches_over_restarts(sqlite_bench: Bench):
    gate = Gate(4)  # the second batch begins after 1.25 s
    audits = await sqlite_bench.serve(gate)
    audit = await audits.create(spec(budget={"seconds": 2.0}), data())
    await gate.reached.wait()
    await sqlite_bench.close(audits)
    audits = await sqlite_bench.serve()
    finished = await final(audits, audit)
    assert (finished.state, finished.done, finished.total) == (State.FINISHED, 6, 9)
    report = json.loads((await audits.report(audit.id, "json")).read_bytes())
    assert (report["complete"], report["samples"], report["planned"]) == (False, 8, 10)
    await audits.close(0.0)


async def test_the_kept_model_must_be_the_same(sqlite_bench: Bench):
    gate = Gate(2)
    audits = await sqlite_bench.serve(gate)
    audit = await audits.create(spec(), data())
    await gate.reached.wait()
    await sqlite_bench.close(audits)
    (kept,) = sqlite_bench.root.rglob("net.onnx")
    kept.write_bytes(b"another network")
    audits = await sqlite_bench.serve()
    failed = await final(audits, audit)
    assert failed.state is State.FAILED
    assert f"began with the model {sqlite_bench.worker.info.sha256}" in failed.error
    await audits.close(0.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "cuda:0"}, "began with the device cpu, and now it is cuda:0"),
        ({"precision": "bfloat16"}, "the precision float32, and now it is bfloat16"),
        ({"max_batch": 3}, "batches of 4, and the server now runs at most 3"),
    ],
)
async def test_figures_of_other_surroundings_are_not_mixed(
    sqlite_bench: Bench, changes: Any, sentence: str
):
    gate = Gate(2)
    audits = await sqlite_bench.serve(gate)
    audit = await audits.create(spec(), data())
    await gate.reached.wait()
    await sqlite_bench.close(audits)
    worker = sqlite_bench.worker
    worker.info = dataclasses.replace(worker.info, **changes)
    audits = await sqlite_bench.serve()
    failed = await final(audits, audit)
    assert failed.state is State.FAILED
    assert sentence in failed.error
    await audits.close(0.0)


async def test_a_model_that_cannot_be_loaded_yet_is_waited_for(sqlite_bench: Bench):
    audits = await sqlite_bench.serve()
    sqlite_bench.worker.failures = [Unavailable("starting"), Overloaded("busy", retry_after=0.0)]
    assert (await final(audits, await audits.create(spec(), data()))).state is State.FINISHED
    assert sqlite_bench.worker.loads == 3
    await audits.close(0.0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (spec(model="nobody"), NotFound, "no model 'nobody'"),
        (spec(attacks=[{"plugin": "nothing"}]), NotFound, "no plugin 'nothing'"),
        (spec(threats=[{"norm": "linf", "epsilons": [3.0]}]), InvalidRequest, "epsilons"),
    ],
)
async def test_a_wrong_specification_is_refused_before_the_data_are_read(
    sqlite_bench: Bench, given: AuditSpec, error: type[InterpretError], message: str
):
    async def unread() -> AsyncIterator[DataChunk]:
        pytest.fail("the data were read")
        yield

    audits = await sqlite_bench.serve()
    with pytest.raises(error, match=message):
        await audits.create(given, unread())
    await audits.close(0.0)


async def test_of_refused_and_abandoned_data_nothing_is_left(sqlite_bench: Bench):
    audits = await sqlite_bench.serve(max_bytes=ROWS.nbytes - 1)
    with pytest.raises(RequestTooLarge):
        await audits.create(spec(), data())
    with pytest.raises(InvalidRequest, match="row 0 lies outside"):
        await audits.create(spec(), data(rows=ROWS + 2))
    arrived = asyncio.Event()

    async def slow() -> AsyncIterator[DataChunk]:
        yield DataChunk(array(ROWS[:8]), LABELS[:8])
        arrived.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(audits.create(spec(), slow()))
    await arrived.wait()
    assert any("given/000001" in name for name in tree(sqlite_bench.root))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree(sqlite_bench.root) == [".lock"]
    assert audits.list() == ()
    await audits.close(0.0)


async def test_stored_data_sets_are_audited_and_named(sqlite_bench: Bench):
    np.savez(sqlite_bench.folder / "data" / "set.npz", inputs=ROWS, labels=np.array(LABELS))
    audits = await sqlite_bench.serve()
    with pytest.raises(FailedPrecondition, match="--data-root"):
        await audits.create(spec(), StoredSet("set"))
    await sqlite_bench.close(audits)
    audits = await sqlite_bench.serve(data=DataRoot(sqlite_bench.folder / "data"))
    audit = await audits.create(spec(), StoredSet("set", start=2, count=5))
    assert audit.origin.data == "set[2:7]"
    assert (await final(audits, audit)).samples == 5
    await audits.close(0.0)


@pytest.mark.parametrize("form", ["html", "json", "csv", "parquet", "bundle"])
async def test_reports_come_in_every_form_and_again_when_they_are_lost(
    sqlite_bench: Bench, form: str
):
    audits = await sqlite_bench.serve()
    audit = await final(audits, await audits.create(spec(), data()))
    path = await audits.report(audit.id, form)
    content = path.read_bytes()
    assert content
    assert path.is_relative_to(sqlite_bench.root / audit.id)
    document = sqlite_bench.root / audit.id / "bundle" / "report.json"
    document.unlink()
    path.unlink(missing_ok=True)
    assert (await audits.report(audit.id, form)).read_bytes() == content or form == "parquet"
    assert document.exists()
    with pytest.raises(InvalidRequest, match="form: there is html, json"):
        await audits.report(audit.id, "pdf")
    await audits.close(0.0)


async def test_a_folder_belongs_to_one_server_and_its_user(sqlite_bench: Bench):
    audits = await sqlite_bench.serve()
    assert sqlite_bench.root.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FailedPrecondition, match="audit_root: another server"):
        await sqlite_bench.serve()
    await sqlite_bench.close(audits)
    await (await sqlite_bench.serve()).close(0.0)


async def test_a_server_that_ended_while_creating_or_deleting_is_tidied_after(sqlite_bench: Bench):
    audits = await sqlite_bench.serve()
    kept, gone = [await final(audits, await audits.create(spec(), data())) for _ in range(2)]
    await sqlite_bench.close(audits)
    root = sqlite_bench.root
    (root / kept.id).rename(root / f".new-{kept.id}")  # stored, but not yet in its place
    (root / gone.id).rename(root / f".old-{gone.id}")  # about to be forgotten
    (root / ".new-unfinished" / "given").mkdir(parents=True)
    (root / "somebody's folder").mkdir()
    audits = await sqlite_bench.serve()
    assert [item.id for item in audits.list()] == [kept.id]
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted(
        [kept.id, "somebody's folder"]
    )
    assert (await audits.report(kept.id, "json")).exists()
    await audits.close(0.0)


async def test_servers_with_folders_of_their_own_share_a_database(bench: Bench):
    audits = await bench.serve()
    audit = await final(audits, await audits.create(spec(), data()))
    ours, bench.root = bench.root, bench.folder / "other"
    other = await bench.serve()
    assert other.list() == ()
    await final(other, await other.create(spec(), data()))
    await bench.close(other)
    await bench.close(audits)
    bench.root = ours
    assert [item.id for item in (await bench.serve()).list()] == [audit.id]


async def test_memory_does_not_grow_with_samples(sqlite_bench: Bench):
    rows, batch = 5000, 100
    held: list[int] = []

    def note(unit: Unit) -> None:
        if unit.stage == 0 and unit.batch in (10, rows // batch - 1):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])

    async def many() -> AsyncIterator[DataChunk]:
        drawn = np.random.default_rng(2)
        for _ in range(rows // 1000):
            inputs = drawn.random((1000, *SHAPE), dtype=np.float32)
            yield DataChunk(array(inputs), tuple(drawn.integers(0, 3, 1000).tolist()))

    audits = await sqlite_bench.serve(note)
    given = spec(batch_size=batch, threats=[{"norm": "linf", "epsilons": [0.3]}])
    sqlite_bench.worker.info = dataclasses.replace(sqlite_bench.worker.info, max_batch=batch)
    tracemalloc.start()
    try:
        audit = await audits.create(given, many())
        while len(held) < 2:
            await anext(audits.watch(audit.id))
            await asyncio.sleep(0.01)
    finally:
        tracemalloc.stop()
    await audits.close(0.0)
    growth, samples = held[1] - held[0], rows - 11 * batch
    assert growth / samples < 40  # bytes; an outcome that were kept would have ten times as many


async def test_nothing_but_audits_is_kept_in_memory(sqlite_bench: Bench):
    audits = await sqlite_bench.serve()
    await final(audits, await audits.create(spec(), data()))
    await audits.close(0.0)
    assert (audits._runs, audits._queue, audits._watchers) == ({}, [], {})


def test_audits_import_no_torch():
    code = (
        "import pkgutil, importlib, sys, interpret_server.audits as audits\n"
        "found = pkgutil.walk_packages(audits.__path__, 'interpret_server.audits.')\n"
        "names = [item.name for item in found]\n"
        "[importlib.import_module(name) for name in names]\n"
        "heavy = {'torch', 'onnx', 'matplotlib', 'scipy', 'pyarrow'} & sys.modules.keys()\n"
        "print(len(names) > 15, *sorted(heavy))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True"]

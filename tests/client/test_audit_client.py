"""Audits from Python: what is sent, followed, and written, by both clients."""

import inspect
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_audit_server import LONG, FakeAudits, serve_audits, until

import interpret_client
from interpret_client import (
    AuditRun,
    AuditStep,
    Cancelled,
    Client,
    DataSet,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ServerError,
    Unavailable,
    aio,
)
from interpret_client import _audit_calls as calls
from interpret_server.audits.ingest import StoredSet
from interpret_server.audits.records import Current, State

ROWS = np.random.default_rng(0).random((5, 1, 2, 2), np.float32)
LABELS = [0, 1, 2, 0, 1]
BUNDLE = {"report.html": b"<p>", "report.json": b"{}", "inputs/000000.npy": bytes(3 << 20)}


@pytest.fixture
def audits() -> FakeAudits:
    return FakeAudits()


@pytest.fixture
def address(audits: FakeAudits) -> Iterator[str]:
    with serve_audits(audits) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with interpret_client.connect(address, timeout=LONG) as client:
        yield client


@pytest.fixture
def run(client: Client) -> AuditRun:
    return client.audit("net", ROWS, LABELS, epsilon=0.1)


def zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return data.getvalue()


@pytest.fixture
def reports(audits: FakeAudits, tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    files = {"html": b"<p>", "json": b"{}", "csv": b"row\n", "bundle": zipped(BUNDLE)}
    for form, data in files.items():
        audits.files[form] = folder / form
        audits.files[form].write_bytes(data)
    return folder


def test_an_audit_is_asked_for_in_the_words_of_the_client(
    client: Client, audits: FakeAudits
) -> None:
    run = client.audit(
        "net",
        ROWS,
        np.array(LABELS, np.uint8),
        suite="black_box",
        threats={"linf": [8 / 255, 0.1], "l2": 1},
        attacks=["square", {"plugin": "pgd", "name": "long", "params": {"steps": np.int64(9)}}],
        minimal=False,
        seed=3,
        batch_size=2,
        seconds=60,
        queries=200,
        title="Of Friday",
        confirm_small_epsilon=True,
    )
    spec = audits.get(run.id).spec
    assert [(item.norm, item.epsilons) for item in spec.threats] == [
        ("linf", (8 / 255, 0.1)),
        ("l2", (1.0,)),
    ]
    assert run.audit.spec == {
        "model": "net",
        "title": "Of Friday",
        "suite": "black_box",
        "attacks": [
            {"plugin": "square", "name": "", "params": {}},
            {"plugin": "pgd", "name": "long", "params": {"steps": 9}},
        ],
        "threats": [
            {"norm": "linf", "epsilons": [8 / 255, 0.1]},
            {"norm": "l2", "epsilons": [1.0]},
        ],
        "minimal": False,
        "seed": 3,
        "batch_size": 2,
        "budget": {"seconds": 60.0, "queries": 200},
        "confirm_small_epsilon": True,
    }
    (chunk,) = audits.data[run.id]
    assert (chunk.labels, bytes(chunk.inputs.data)) == (tuple(LABELS), ROWS.tobytes())


def test_large_data_sets_travel_in_messages_of_a_megabyte(
    client: Client, audits: FakeAudits, tmp_path: Path
) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (40, 3, 200, 200), np.uint8)
    run = client.audit("net", rows, np.arange(40) % 3, epsilon=0.1)
    chunks = audits.data[run.id]
    assert len(chunks) == 5
    assert all(len(chunk.inputs.data) <= 1 << 20 for chunk in chunks)
    assert b"".join(chunk.inputs.data for chunk in chunks) == rows.tobytes()
    assert sum((chunk.labels for chunk in chunks), ()) == tuple((np.arange(40) % 3).tolist())
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 600_000)
    run = client.audit("net", [*files[:2], str(files[2]), b"png"], [0, 1, 2, 0], epsilon=0.1)
    chunks = audits.data[run.id]
    assert [len(chunk.inputs) for chunk in chunks] == [2, 2]
    assert chunks[1].inputs == (bytes([2]) * 600_000, b"png")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"dataset": "mnist/test"}, StoredSet("mnist/test")),
        ({"dataset": DataSet("a", slice(10, 30))}, StoredSet("a", 10, 20)),
        ({"inputs": DataSet("a", slice(10, None))}, StoredSet("a", 10)),
    ],
)
def test_data_sets_of_the_server(
    client: Client, audits: FakeAudits, given: dict[str, Any], kept: StoredSet
) -> None:
    assert audits.data[client.audit("net", **given, epsilon=0.1).id] == kept


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "inputs"),
        ({"inputs": ROWS, "labels": LABELS, "dataset": "a"}, "inputs"),
        ({"inputs": ROWS}, "labels"),
        ({"inputs": ROWS, "labels": LABELS[1:]}, "labels"),
        ({"inputs": ROWS, "labels": [0.5] * 5}, "labels"),
        ({"inputs": ROWS, "labels": [LABELS]}, "labels"),
        ({"inputs": ROWS[:0], "labels": []}, "inputs"),
        ({"inputs": {"a": ROWS}, "labels": LABELS}, "inputs"),
        ({"inputs": ["no.png"], "labels": [0]}, "inputs[0]"),
        ({"dataset": "a", "labels": LABELS}, "labels"),
        ({"dataset": "a", "suite": "hard"}, "suite"),
        ({"dataset": "a", "norm": "l7"}, "norm"),
        ({"dataset": "a", "epsilon": "8/255"}, "epsilon"),
        ({"dataset": "a", "threats": {"linf": 0.1}}, "threats"),
        ({"dataset": "a", "attacks": [{"name": "x"}]}, "attacks[0]"),
        ({"dataset": "a", "attacks": [{"plugin": "x", "steps": 3}]}, "attacks[0]"),
        ({"dataset": "a", "epsilon": -1}, "threats[0].epsilons[0]"),  # as the server says
    ],
)
def test_a_wrong_argument_is_named(
    client: Client, audits: FakeAudits, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.audit("net", **{"epsilon": 0.1, **given})
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not audits.list()


@pytest.mark.parametrize("given", [{"seed": "three"}, {"seed": -1}, {"title": 7}])
def test_an_argument_that_cannot_be_sent_is_refused(client: Client, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="an argument cannot be sent"):
        client.audit("net", dataset="a", epsilon=0.1, **given)


def test_what_is_known_of_an_audit(client: Client, run: AuditRun, audits: FakeAudits) -> None:
    assert run.audit.state == "queued"
    assert run.audit.clean_accuracy is run.audit.robust_accuracy is run.audit.started is None
    step = Current(1, "linf:0.1:pgd", 20, 40)
    counts = {"samples": 4, "correct": 3, "standing": 1}
    audits.change(run.id, state=State.RUNNING, done=3, current=step, **counts)
    audit = run.status()
    assert audit.current == AuditStep(1, "linf:0.1:pgd", 20, 40)
    assert audit == run.audit
    assert (audit.state, audit.done, audit.total, audit.ended) == ("running", 3, 6, False)
    assert (audit.clean_accuracy, audit.robust_accuracy) == (0.75, 0.25)
    assert audit.plan.stages == ("clean", "linf:0.1:pgd")
    assert audit.plan.notes == ("fab is left out.",)
    assert (audit.origin.bounds, audit.origin.manifest) == ((0.0, 1.0), {"version": "3"})
    assert audit.origin.versions == {"interpret-server": "0", "pgd": "1"}
    assert repr(run) == f"<AuditRun {run.id} of net: running>"


def test_audits_are_found_again_and_steered(client: Client, audits: FakeAudits) -> None:
    first, second = (client.audit("net", ROWS, LABELS, epsilon=0.1) for _ in range(2))
    assert [run.id for run in client.audits()] == [second.id, first.id]
    again = client.get_audit(first.id)
    assert again.cancel().state == "cancelled"
    assert first.status().state == "cancelled"
    assert again.resume().state == "queued"
    with pytest.raises(FailedPrecondition):
        again.resume()
    again.delete()
    with pytest.raises(NotFound):
        first.status()
    with pytest.raises(NotFound):
        client.get_audit(first.id)
    assert [run.id for run in client.audits()] == [second.id]


def test_waiting_tells_progress_and_ends_with_the_audit(
    run: AuditRun, client: Client, audits: FakeAudits
) -> None:
    other, seen, seen_too = client.get_audit(run.id), [], []
    waiting = threading.Thread(target=lambda: other.wait(seen_too.append))
    waiting.start()

    def follow(audit: interpret_client.Audit) -> None:
        seen.append(audit)
        until(lambda: seen_too[-1:] == [audit])
        if len(seen) == 1:
            audits.change(run.id, state=State.RUNNING, done=2)
        elif len(seen) == 2:
            audits.finish(run.id)

    final = run.wait(follow)
    waiting.join(LONG)
    assert [(audit.state, audit.done) for audit in seen] == [
        ("queued", 0),
        ("running", 2),
        ("finished", 6),
    ]
    assert seen_too == seen
    assert final == seen[-1] == run.audit == other.audit
    assert final.finished == 103.5
    until(lambda: audits.watchers == 0)


def test_waiting_for_what_does_not_finish(run: AuditRun, audits: FakeAudits) -> None:
    with pytest.raises(DeadlineExceeded, match=r"still queued after 0\.2 s"):
        run.wait(timeout=0.2)
    audits.change(run.id, state=State.FAILED, error="the disk is full.")
    with pytest.raises(FailedPrecondition, match=r"failed: the disk is full\."):
        run.wait()
    audits.change(run.id, state=State.CANCELLED)
    with pytest.raises(Cancelled, match="may be resumed"):
        run.wait()
    assert [audit.state for audit in run.watch()] == ["cancelled"]
    run.delete()
    with pytest.raises(NotFound):
        run.wait()


def test_a_watcher_that_leaves_lets_the_audit_go_on(run: AuditRun, audits: FakeAudits) -> None:
    for audit in run.watch():
        assert audit.state == "queued"
        assert audits.watchers == 1
        break
    until(lambda: audits.watchers == 0)
    assert run.status().state == "queued"


def test_waiting_outlives_the_clients_timeout(address: str, audits: FakeAudits) -> None:
    with interpret_client.connect(address, timeout=0.5) as client:
        run = client.audit("net", ROWS, LABELS, epsilon=0.1, timeout=LONG)
        threading.Timer(1.0, audits.finish, [run.id]).start()
        assert run.wait().state == "finished"


def test_waiting_outlives_the_server(audits: FakeAudits) -> None:
    with serve_audits(audits) as address:
        client = interpret_client.connect(address)
        run = client.audit("net", ROWS, LABELS, epsilon=0.1)
        seen: list[str] = []
        waiting = threading.Thread(target=lambda: run.wait(lambda audit: seen.append(audit.state)))
        waiting.start()
        until(lambda: seen == ["queued"])
    assert audits.closed
    audits.closed = False
    with serve_audits(audits, address=address), client:
        until(lambda: audits.watchers == 1)
        audits.finish(run.id)
        waiting.join(LONG)
    assert seen == ["queued", "finished"]


def test_a_server_that_was_never_there_is_not_waited_for(run: AuditRun) -> None:
    with interpret_client.connect("127.0.0.1:1") as other, pytest.raises(Unavailable):
        AuditRun(other, run.audit).wait()


def test_patience_ends() -> None:
    error = Unavailable("gone")
    patience = calls.Patience(0.3)
    with pytest.raises(Unavailable):
        patience.pause_after(error)
    patience.hear()
    assert [patience.pause_after(error) for _ in range(2)] == [0.1, 0.2]
    with pytest.raises(Unavailable):
        patience.pause_after(error)  # 0.4 s are not left
    patience.hear()
    assert patience.pause_after(error) == 0.1


def test_reports_as_bytes_and_files(
    run: AuditRun, audits: FakeAudits, reports: Path, tmp_path: Path
) -> None:
    with pytest.raises(FailedPrecondition, match="not finished"):
        run.report()
    audits.finish(run.id)
    assert run.report() == b"<p>"
    assert run.report("json") == b"{}"
    path = tmp_path / "new" / "samples.csv"
    assert run.report("csv", path) == path
    assert path.read_bytes() == b"row\n"
    with pytest.raises(FileExistsError, match="holds a report"):
        run.report("csv", path)
    assert run.report("html", path, overwrite=True).read_bytes() == b"<p>"
    with pytest.raises(InvalidRequest, match="'pdf' is none of html"):
        run.report("pdf")
    assert [item.name for item in path.parent.iterdir()] == ["samples.csv"]


def test_a_bundle_is_kept_or_unpacked(
    run: AuditRun, audits: FakeAudits, reports: Path, tmp_path: Path
) -> None:
    audits.finish(run.id)
    kept = run.report("bundle", tmp_path / "kept.zip")
    assert kept.read_bytes() == zipped(BUNDLE) == run.report("bundle")
    folder = run.report("bundle", tmp_path / "folder")
    files = {item.relative_to(folder).as_posix(): item for item in folder.rglob("*.*")}
    assert {name: file.read_bytes() for name, file in files.items()} == BUNDLE
    with pytest.raises(FileExistsError):
        run.report("bundle", folder)
    for name in ("examples/000000-001.npy", "inputs/000001.npy", "mine/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"earlier")
    assert run.report("bundle", folder, overwrite=True) == folder
    left = {item.relative_to(folder).as_posix() for item in folder.rglob("*.*")}
    assert left == {*BUNDLE, "mine/notes.txt"}


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "C:\\out", "a\\..\\out", ".."])
def test_a_bundle_writes_nothing_outside_its_folder(
    run: AuditRun, audits: FakeAudits, reports: Path, tmp_path: Path, name: str
) -> None:
    audits.files["bundle"].write_bytes(zipped({"report.html": b"<p>", name: b"evil"}))
    audits.finish(run.id)
    with pytest.raises(ServerError, match="a file outside of it"):
        run.report("bundle", tmp_path / "here" / "folder")
    assert not (tmp_path / "here").exists()


def test_a_bundle_follows_no_links(
    run: AuditRun, audits: FakeAudits, reports: Path, tmp_path: Path
) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(audits.files["bundle"], "w") as archive:
        archive.writestr(link, "/tmp")
    audits.finish(run.id)
    folder, other = tmp_path / "folder", tmp_path / "other"
    with pytest.raises(ServerError, match="'link'"):
        run.report("bundle", folder)
    audits.files["bundle"].write_bytes(zipped(BUNDLE))
    for item in (folder, other):
        item.mkdir()
    (folder / "inputs").symlink_to(other)
    with pytest.raises(ServerError, match="inputs"):
        run.report("bundle", folder, overwrite=True)
    assert not list(other.iterdir())
    audits.files["bundle"].write_bytes(b"no zip file")
    with pytest.raises(ServerError, match="no zip file"):
        run.report("bundle", tmp_path / "third")


def test_a_report_that_is_not_whole_is_not_kept(tmp_path: Path) -> None:
    pb = calls.pb
    header = pb.GetAuditReportResponse(header=pb.ReportHeader(size=3, sha256="ab"))
    chunk = pb.GetAuditReportResponse(chunk=b"<p>")
    for messages in ([header], [header, chunk], []):
        download = calls.Download(io.BytesIO())
        for message in messages:
            download.add(message)
        with pytest.raises(ServerError, match="did not come whole"):
            download.finish()
    for messages in ([chunk], [header, header]):
        download = calls.Download(io.BytesIO())
        with pytest.raises(ServerError, match="out of order"):
            [download.add(message) for message in messages]


async def test_the_asynchronous_client_does_the_same(
    address: str, client: Client, audits: FakeAudits, reports: Path, tmp_path: Path
) -> None:
    def public(cls: type) -> dict[str, list[str]]:
        return {
            name: [str(item) for item in inspect.signature(member).parameters.values()]
            for name, member in vars(cls).items()
            if callable(member) and not name.startswith("_")
        }

    assert public(AuditRun) == public(aio.AsyncAuditRun)
    async with aio.connect(address) as other:
        run = await other.audit("net", ROWS, LABELS, epsilon=0.1)
        blocking = client.audit("net", ROWS, LABELS, epsilon=0.1)
        assert [item.id for item in await other.audits()] == [blocking.id, run.id]
        assert (await other.get_audit(blocking.id)).audit == blocking.audit
        assert audits.data[run.id] == audits.data[blocking.id]
        assert audits.get(run.id).spec == audits.get(blocking.id).spec
        assert (await run.cancel()).state == "cancelled"
        with pytest.raises(Cancelled):
            await run.wait()
        assert (await run.resume()).state == "queued"
        with pytest.raises(DeadlineExceeded, match="still queued"):
            await run.wait(timeout=0.2)
        seen = []

        def follow(audit: interpret_client.Audit) -> None:
            seen.append(audit.state)
            if audit.state == "queued":
                audits.finish(run.id)

        assert (await run.wait(follow)) == await run.status()
        assert seen == ["queued", "finished"]
        assert [audit.state async for audit in run.watch()] == ["finished"]
        assert await run.report("json") == b"{}"
        assert (await run.report("csv", tmp_path / "a.csv")).read_bytes() == b"row\n"
        folder = await run.report("bundle", tmp_path / "folder")
        assert (folder / "report.html").read_bytes() == b"<p>"
        await run.delete()
        with pytest.raises(NotFound):
            await run.status()
        with pytest.raises(NotFound):
            async for _ in run.watch():
                pass

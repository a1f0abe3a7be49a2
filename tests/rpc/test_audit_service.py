"""`AuditService` over audits that are what the test makes of them."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from failures import failure_of
from fake_audit_server import LONG, FakeAudits, OneModel, serve_audits, until
from grpc import StatusCode

from interpret_api.v1 import audit_service_pb2 as pb
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.audit_service_pb2_grpc import AuditServiceStub
from interpret_server.audits.ingest import StoredSet
from interpret_server.audits.records import State
from interpret_server.errors import FailedPrecondition, Unavailable
from interpret_server.rpc.audit_service import AuditDesk, AuditServicer
from interpret_server.rpc.names import Names
from interpret_server.rpc.server import Server
from interpret_server.testing.server import serve

ROWS = np.arange(20, dtype=np.float32).reshape(5, 1, 2, 2) / 20
LABELS = (0, 1, 2, 0, 1)
THREAT = pb.AuditThreat(norm=pb.AUDIT_NORM_LINF, epsilons=[0.2, 0.1])
EMPTY = types.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[0])
SPEC = pb.AuditSpec(model="net", threats=[THREAT])


@pytest.fixture
def audits() -> FakeAudits:
    return FakeAudits()


@pytest.fixture
def stub(audits: FakeAudits) -> Iterator[AuditServiceStub]:
    with serve_audits(audits) as address, grpc.insecure_channel(address) as channel:
        yield AuditServiceStub(channel)


def asked(spec: pb.AuditSpec = SPEC, count: int = 5) -> pb.CreateAuditRequest:
    return pb.CreateAuditRequest(header=pb.AuditHeader(spec=spec, samples=count))


def samples(inputs: types.Inputs, labels: Iterable[int] = ()) -> pb.CreateAuditRequest:
    return pb.CreateAuditRequest(samples=pb.AuditSamples(inputs=inputs, labels=labels))


def rows(first: int = 0, last: int = 5) -> pb.CreateAuditRequest:
    part = ROWS[first:last]
    tensor = types.Tensor(dtype="DATA_TYPE_FLOAT32", shape=part.shape, data=part.tobytes())
    return samples(types.Inputs(tensor=tensor), LABELS[first:last])


def stored(**fields: object) -> pb.CreateAuditRequest:
    return samples(types.Inputs(dataset=types.DataSet(**fields)))


def created(stub: AuditServiceStub, *messages: pb.CreateAuditRequest) -> pb.Audit:
    return stub.CreateAudit(iter(messages or (asked(), rows())), timeout=LONG).audit


def test_an_audit_is_created_from_what_comes_in_pieces(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    spec = pb.AuditSpec(
        model="net",
        title="Of Friday",
        suite=pb.AUDIT_SUITE_QUICK,
        attacks=[
            pb.AuditAttack(plugin="pgd", name="long", params_json='{"steps": 100}'),
            pb.AuditAttack(plugin="square"),
        ],
        threats=[THREAT, pb.AuditThreat(norm=pb.AUDIT_NORM_L2, epsilons=[1])],
        minimal=False,
        seed=7,
        batch_size=2,
        budget=pb.AuditBudget(seconds=60, queries=100),
        confirm_small_epsilon=True,
    )
    audit = created(stub, asked(spec), rows(0, 2), rows(2, 5))
    kept = audits.get(audit.id)
    assert kept.spec.model_dump() == {
        "model": "net",
        "title": "Of Friday",
        "suite": "quick",
        "attacks": (
            {"plugin": "pgd", "name": "long", "params": {"steps": 100}},
            {"plugin": "square", "name": "", "params": {}},
        ),
        "threats": ({"norm": "linf", "epsilons": (0.1, 0.2)}, {"norm": "l2", "epsilons": (1.0,)}),
        "minimal": False,
        "seed": 7,
        "batch_size": 2,
        "budget": {"seconds": 60.0, "queries": 100},
        "confirm_small_epsilon": True,
    }
    data = audits.data[audit.id]
    assert isinstance(data, list)
    assert [chunk.labels for chunk in data] == [LABELS[:2], LABELS[2:]]
    assert b"".join(chunk.inputs.data for chunk in data) == ROWS.tobytes()
    spec.attacks[1].params_json = "{}"
    spec.threats[0].epsilons[:] = [0.1, 0.2]
    assert audit.spec == spec


def test_what_is_left_out_has_its_default(stub: AuditServiceStub, audits: FakeAudits) -> None:
    audit = created(stub)
    kept = audits.get(audit.id).spec
    assert (kept.suite, kept.minimal, kept.batch_size, kept.seed) == ("standard", True, None, 0)
    assert kept.budget.seconds is kept.budget.queries is None
    assert audit.spec.suite == pb.AUDIT_SUITE_STANDARD
    assert audit.spec.minimal
    assert not audit.spec.HasField("batch_size")


def test_an_audit_tells_where_it_stands_and_what_it_is_about(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    number = created(stub).id
    audits.change(
        number, state=State.RUNNING, done=3, samples=4, correct=3, standing=2, started=105.0
    )
    audit = stub.GetAudit(pb.GetAuditRequest(id=number)).audit
    assert audit.state == pb.AUDIT_STATE_RUNNING
    assert audit.progress == pb.AuditProgress(done=3, total=6, samples=4, correct=3, standing=2)
    assert (audit.created, audit.started, audit.HasField("finished")) == (100.0, 105.0, False)
    assert list(audit.plan.stages) == ["clean", "linf:0.1:pgd"]
    assert list(audit.plan.notes) == ["fab is left out."]
    assert (audit.plan.samples, audit.plan.batch_size) == (5, 2)
    assert audit.origin.model_sha256 == "ab" * 32
    assert (audit.origin.bounds.lower, audit.origin.bounds.upper) == (0, 1)
    assert dict(audit.origin.versions) == {"interpret-server": "0", "pgd": "1"}


def test_encoded_images_and_data_sets_of_the_server(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    images = types.Inputs(images=types.EncodedImages(images=[b"one", b"two"]))
    (chunk,) = audits.data[created(stub, asked(count=2), samples(images, [1, 2])).id]
    assert (chunk.inputs, chunk.labels) == ((b"one", b"two"), (1, 2))
    audit = created(stub, asked(count=0), stored(name="mnist/test", start=10, count=90))
    assert audits.data[audit.id] == StoredSet("mnist/test", 10, 90)
    whole = created(stub, asked(count=0), stored(name="mnist/test"))
    assert audits.data[whole.id] == StoredSet("mnist/test")


@pytest.mark.parametrize(
    ("messages", "field", "sentence"),
    [
        ([], "header", "the first message says what"),
        ([rows()], "header", "the first message says what"),
        ([asked(pb.AuditSpec())], "model", "the name of a loaded model"),
        ([asked(pb.AuditSpec(model="net"))], "threats", "name a norm and at least one epsilon"),
        ([asked(pb.AuditSpec(model="net", suite=9))], "suite", "9 is none of AUDIT_SUITE_QUICK"),
        (
            [asked(pb.AuditSpec(model="net", threats=[pb.AuditThreat(norm=7)]))],
            "threats[0].norm",
            "7 is none of AUDIT_NORM_LINF",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[THREAT, pb.AuditThreat(epsilons=[1, -1])]))],
            "threats[1].epsilons[1]",
            "greater than 0",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[pb.AuditThreat(epsilons=[float("nan")])]))],
            "threats[0].epsilons[0]",
            "finite",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[THREAT, THREAT]))],
            "threats",
            "name each norm once",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[THREAT], seed=1 << 63))],
            "seed",
            "less than or equal",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[THREAT], batch_size=0))],
            "batch_size",
            "greater than or equal",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[THREAT], budget=pb.AuditBudget(seconds=0)))],
            "budget.seconds",
            "greater than 0",
        ),
        (
            [asked(pb.AuditSpec(model="net", threats=[THREAT], attacks=[pb.AuditAttack()]))],
            "attacks[0].plugin",
            "at least 1 character",
        ),
        (
            [
                asked(
                    pb.AuditSpec(
                        model="net",
                        threats=[THREAT],
                        attacks=[pb.AuditAttack(plugin="pgd", params_json="[1]")],
                    )
                )
            ],
            "attacks[0].params_json",
            "a JSON object",
        ),
        ([asked(count=0)], "header.samples", "how many samples"),
        ([asked(count=0), rows()], "header.samples", "how many samples"),
        ([asked(count=-1), rows()], "header.samples", "how many samples"),
        ([asked()], "samples", "ended after 0 of 5"),
        ([asked(), rows(0, 3)], "samples", "ended after 3 of 5"),
        ([asked(count=4), rows(0, 3), rows(3, 5)], "samples", "4 were announced, and more came"),
        ([asked(), pb.CreateAuditRequest()], "samples", "samples alone"),
        ([asked(), rows(), asked()], "samples", "samples alone"),
        ([asked(), samples(types.Inputs())], "inputs", "give a tensor"),
        ([asked(), rows(0, 2), stored(name="a")], "inputs.dataset", "header.samples as 0"),
        ([asked(count=0), stored(name="a"), rows()], "samples", "nothing follows a data set"),
        ([asked(), rows(0, 0)], "labels", "the true class of every sample"),
        ([asked(), stored(name="")], "inputs.dataset.name", "a data set below"),
        ([asked(), stored(name="a", start=-1)], "inputs.dataset.rows", "not negative"),
        ([asked(), stored(name="a", rows=[3, 1])], "inputs.dataset.rows", "follow each other"),
        (
            [asked(), samples(types.Inputs(dataset=types.DataSet(name="a")), [1])],
            "labels",
            "lie on the server",
        ),
        (
            [asked(), samples(types.Inputs(tensor=types.Tensor(dtype=1, shape=[2], data=b"12")))],
            "inputs.data",
            "2 bytes were sent",
        ),
        (
            [asked(), samples(types.Inputs(named=types.NamedTensors(tensors={"a": EMPTY})))],
            "inputs.named",
            "one input",
        ),
    ],
)
def test_a_wrong_message_is_refused_by_its_field(
    stub: AuditServiceStub,
    audits: FakeAudits,
    messages: list[pb.CreateAuditRequest],
    field: str,
    sentence: str,
) -> None:
    failure = failure_of(lambda: stub.CreateAudit(iter(messages), timeout=LONG))
    assert failure.code is StatusCode.INVALID_ARGUMENT
    assert sentence in failure.fields[field]
    assert failure.message == f"{field}: {failure.fields[field]}"
    assert not audits.list()


def test_every_wrong_field_is_named(stub: AuditServiceStub) -> None:
    spec = pb.AuditSpec(
        model="net", threats=[pb.AuditThreat()], title="x" * 201, budget=pb.AuditBudget(queries=0)
    )
    failure = failure_of(lambda: stub.CreateAudit(iter([asked(spec)]), timeout=LONG))
    assert set(failure.fields) == {"title", "threats[0].epsilons", "budget.queries"}


def test_a_model_that_is_not_loaded_is_refused_before_its_samples(stub: AuditServiceStub) -> None:
    refused, sent = threading.Event(), []

    def messages() -> Iterator[pb.CreateAuditRequest]:
        yield asked(pb.AuditSpec(model="other", threats=[THREAT]))
        assert refused.wait(LONG)
        sent.append(1)

    failure = failure_of(lambda: stub.CreateAudit(messages(), timeout=LONG))
    assert not sent
    refused.set()
    assert failure.code is StatusCode.NOT_FOUND
    assert "other" in failure.message


def test_an_upload_waits_until_what_came_is_stored(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    images = [np.full(1 << 20, value, np.uint8).tobytes() for value in range(40)]
    taken = []

    def messages() -> Iterator[pb.CreateAuditRequest]:
        yield asked(count=len(images))
        for image in images:
            taken.append(1)
            yield samples(types.Inputs(images=types.EncodedImages(images=[image])), [0])

    audits.taking.clear()
    call = stub.CreateAudit.future(messages(), timeout=LONG)
    until(lambda: len(taken) > 1)
    for _ in range(20):  # as long as more comes, it is given the time to
        before = len(taken)
        threading.Event().wait(0.05)
        if len(taken) == before:
            break
    assert len(taken) < 30
    audits.taking.set()
    (number,) = [call.result(LONG).audit.id]
    assert [chunk.inputs[0] for chunk in audits.data[number]] == images


@pytest.mark.parametrize("count", [0, 1, 2], ids=["nothing", "spec", "half"])
def test_a_sender_that_stalls_is_given_up(audits: FakeAudits, count: int) -> None:
    over = threading.Event()

    def messages() -> Iterator[pb.CreateAuditRequest]:
        yield from [asked(), rows(0, 2)][:count]
        assert over.wait(LONG)

    with (
        serve_audits(audits, idle_timeout=0.2) as address,
        grpc.insecure_channel(address) as channel,
    ):
        failure = failure_of(lambda: AuditServiceStub(channel).CreateAudit(messages()))
        over.set()
    assert failure.code is StatusCode.DEADLINE_EXCEEDED
    assert "did not come within 0.2 s" in failure.message
    assert not audits.list()
    assert audits.abandoned == (count > 0)


def test_of_an_upload_that_is_given_up_nothing_is_left(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    over = threading.Event()

    def messages() -> Iterator[pb.CreateAuditRequest]:
        yield asked()
        yield rows(0, 2)
        assert over.wait(LONG)

    call = stub.CreateAudit.future(messages(), timeout=LONG)
    until(lambda: audits.taken == 1)
    call.cancel()
    over.set()
    until(lambda: audits.abandoned == 1)
    assert not audits.list()


def test_only_so_many_data_sets_arrive_at_once(stub: AuditServiceStub, audits: FakeAudits) -> None:
    over, waiting = threading.Event(), threading.Semaphore(0)

    def messages() -> Iterator[pb.CreateAuditRequest]:
        yield asked()
        yield rows(0, 2)
        waiting.release()
        assert over.wait(LONG)
        yield rows(2, 5)

    calls = [stub.CreateAudit.future(messages(), timeout=LONG) for _ in range(16)]
    assert all(waiting.acquire(timeout=LONG) for _ in calls)

    def full() -> bool:
        call = stub.CreateAudit.future(iter([asked(), rows()]), timeout=LONG)
        return call.exception() is not None

    until(full)
    failure = failure_of(lambda: created(stub))
    assert failure.reason == "OVERLOADED"
    over.set()
    assert len({call.result(LONG).audit.id for call in calls}) == 16


def test_audits_are_listed_newest_first_cancelled_resumed_and_deleted(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    first, second = created(stub).id, created(stub).id
    listed = stub.ListAudits(pb.ListAuditsRequest()).audits
    assert [audit.id for audit in listed] == [second, first]
    cancelled = stub.CancelAudit(pb.CancelAuditRequest(id=first)).audit
    assert cancelled.state == pb.AUDIT_STATE_CANCELLED
    resumed = stub.ResumeAudit(pb.ResumeAuditRequest(id=first)).audit
    assert resumed.state == pb.AUDIT_STATE_QUEUED
    failure = failure_of(lambda: stub.ResumeAudit(pb.ResumeAuditRequest(id=first)))
    assert failure.code is StatusCode.FAILED_PRECONDITION
    stub.DeleteAudit(pb.DeleteAuditRequest(id=first))
    assert [audit.id for audit in stub.ListAudits(pb.ListAuditsRequest()).audits] == [second]
    failure = failure_of(lambda: stub.GetAudit(pb.GetAuditRequest(id=first)))
    assert failure.code is StatusCode.NOT_FOUND
    failure = failure_of(lambda: stub.GetAudit(pb.GetAuditRequest()))
    assert list(failure.fields) == ["id"]


def test_two_watchers_see_the_same_and_one_that_leaves_costs_nothing(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    number = created(stub).id
    request = pb.WatchAuditRequest(id=number)
    watchers = [stub.WatchAudit(request, timeout=LONG) for _ in range(3)]
    assert {next(watcher).audit.state for watcher in watchers} == {pb.AUDIT_STATE_QUEUED}
    audits.change(number, state=State.RUNNING, done=1)
    assert {next(watcher).audit.progress.done for watcher in watchers} == {1}
    watchers[2].cancel()
    until(lambda: audits.watchers == 2)
    audits.finish(number)
    ends = [[message.audit for message in watcher] for watcher in watchers[:2]]
    assert ends[0] == ends[1]
    assert [audit.state for audit in ends[0]] == [pb.AUDIT_STATE_FINISHED]
    assert audits.watchers == 0
    assert [item.audit.state for item in stub.WatchAudit(request)] == [pb.AUDIT_STATE_FINISHED]


def test_an_audit_that_is_deleted_ends_its_watchers(
    stub: AuditServiceStub, audits: FakeAudits
) -> None:
    number = created(stub).id
    watcher = stub.WatchAudit(pb.WatchAuditRequest(id=number), timeout=LONG)
    next(watcher)
    stub.DeleteAudit(pb.DeleteAuditRequest(id=number))
    failure = failure_of(lambda: next(watcher))
    assert failure.code is StatusCode.NOT_FOUND


async def test_watchers_do_not_hold_a_server_that_stops(audits: FakeAudits) -> None:
    worker: object = OneModel()
    server = Server(worker, audits=lambda *_: audits)
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = AuditServiceStub(channel)
        call = stub.CreateAudit(iter([asked(), rows()]))
        watcher = stub.WatchAudit(pb.WatchAuditRequest(id=(await call).audit.id))
        await watcher.read()
        stopping = asyncio.create_task(server.stop(60))
        with pytest.raises(grpc.RpcError) as caught:
            await watcher.read()
        assert caught.value.code() is StatusCode.UNAVAILABLE
        await asyncio.wait_for(stopping, LONG)
    assert audits.closed


FILES = {
    "html": ("report.html", "text/html; charset=utf-8", b"<p>" * 1000),
    "json": ("report.json", "application/json", json.dumps({"a": 1}).encode()),
    "csv": ("samples.csv", "text/csv; charset=utf-8", b"row\n"),
    "parquet": ("samples.parquet", "application/vnd.apache.parquet", b"PAR1"),
    "bundle": ("bundle.zip", "application/zip", np.arange(700_000, dtype="<u4").tobytes()),
}


@pytest.mark.parametrize("form", FILES)
def test_a_report_comes_in_chunks_with_name_type_size_and_digest(
    stub: AuditServiceStub, audits: FakeAudits, tmp_path: Path, form: str
) -> None:
    name, media_type, data = FILES[form]
    (tmp_path / name).write_bytes(data)
    audits.files[form] = tmp_path / name
    number = created(stub).id
    audits.finish(number)
    request = pb.GetAuditReportRequest(id=number, form=f"REPORT_FORM_{form.upper()}")
    first, *rest = stub.GetAuditReport(request, timeout=LONG)
    digest = hashlib.sha256(data).hexdigest()
    assert first.header == pb.ReportHeader(
        name=name, media_type=media_type, size=len(data), sha256=digest
    )
    assert b"".join(message.chunk for message in rest) == data
    assert all(0 < len(message.chunk) <= 1 << 20 for message in rest)


def test_a_report_is_html_unless_asked_otherwise_and_only_when_finished(
    stub: AuditServiceStub, audits: FakeAudits, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_bytes(b"<p>")
    audits.files["html"] = tmp_path / "report.html"
    number = created(stub).id
    request = pb.GetAuditReportRequest(id=number)
    failure = failure_of(lambda: list(stub.GetAuditReport(request)))
    assert failure.code is StatusCode.FAILED_PRECONDITION
    audits.finish(number)
    assert next(stub.GetAuditReport(request)).header.name == "report.html"
    wrong = pb.GetAuditReportRequest(id=number, form=9)
    assert list(failure_of(lambda: list(stub.GetAuditReport(wrong))).fields) == ["form"]


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    found = Path("/proc/self/fd").iterdir()
    return any(link.is_symlink() and link.readlink() == path for link in found)


def test_a_reader_that_stalls_is_given_up(audits: FakeAudits, tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(bytes(40 << 20))
    audits.files["bundle"] = tmp_path / "bundle.zip"
    with (
        serve_audits(audits, idle_timeout=0.2) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = AuditServiceStub(channel)
        number = created(stub).id
        audits.finish(number)
        request = pb.GetAuditReportRequest(id=number, form=pb.REPORT_FORM_BUNDLE)
        stream = stub.GetAuditReport(request)
        next(stream)
        until(lambda: not is_open(tmp_path / "bundle.zip"))  # though the stream is not read
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED


def test_a_server_without_audits_says_so() -> None:
    worker: object = OneModel()
    with serve(worker=worker) as address, grpc.insecure_channel(address) as channel:
        failure = failure_of(lambda: AuditServiceStub(channel).ListAudits(pb.ListAuditsRequest()))
    assert failure.code is StatusCode.FAILED_PRECONDITION
    assert "--audit-root" in failure.message


def test_audits_are_opened_once_when_first_needed(audits: FakeAudits) -> None:
    with serve_audits(audits) as address, grpc.insecure_channel(address) as channel:
        assert audits.starts == 0
        stub = AuditServiceStub(channel)
        stub.ListAudits(pb.ListAuditsRequest())
        stub.ListAudits(pb.ListAuditsRequest())
        assert audits.starts == 1
    assert audits.closed


async def test_the_model_of_an_audit_goes_by_its_own_name(audits: FakeAudits) -> None:
    worker: object = OneModel()
    names = Names(worker)
    names.publish("stable", {"stable": "net"})
    servicer = AuditServicer(AuditDesk(lambda: audits), names, LONG)

    async def messages() -> AsyncIterator[pb.CreateAuditRequest]:
        yield asked(pb.AuditSpec(model="stable", threats=[THREAT]))
        yield rows()

    answer = await servicer.CreateAudit(messages(), None)
    assert answer.audit.spec.model == audits.get(answer.audit.id).spec.model == "net"


async def test_a_desk_that_is_closed_opens_nothing(audits: FakeAudits) -> None:
    starting, start = asyncio.Event(), audits.start

    async def slowly() -> None:
        starting.set()
        await asyncio.sleep(0)
        await start()

    audits.start = slowly
    desk = AuditDesk(lambda: audits)
    opening = asyncio.create_task(desk.audits())
    await starting.wait()
    await desk.close(0)
    assert await opening is audits
    assert audits.closed
    with pytest.raises(Unavailable):
        await desk.audits()


def test_audits_that_cannot_be_opened_are_tried_again(audits: FakeAudits) -> None:
    refused: list[str] = ["audit_root: another server uses the folder"]
    start = audits.start

    async def refuse() -> None:
        if refused:
            raise FailedPrecondition(refused.pop())
        await start()

    audits.start = refuse
    with serve_audits(audits) as address, grpc.insecure_channel(address) as channel:
        stub = AuditServiceStub(channel)
        failure = failure_of(lambda: stub.ListAudits(pb.ListAuditsRequest()))
        assert failure.code is StatusCode.FAILED_PRECONDITION
        assert "another server" in failure.message
        assert not stub.ListAudits(pb.ListAuditsRequest()).audits

"""Hostile files on a real server: none escapes, and a well-behaved model answers all along."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server.engine.sandbox import missing

from . import foreign_files
from .bait import Bait, tells
from .corpus import files
from .kinds import HostileFile
from .outcome import OK, Outcome, faults
from .siege import GOOD, Besieger, Watch

ALL = os.environ.get("INTERPRET_HOSTILE") == "all"
WAIT = 120  # seconds for the server to start
SAMPLE = (
    "torchscript-load-overwrites",
    "torchscript-load-saves",
    "torchscript-load-tells-a-secret-in-an-error",
    "torchscript-load-endless",
    "torchscript-load-grows",
    "torchscript-load-crashes",
    "torchscript-load-prints",
    "torchscript-load-switches-gradients-off",
    "torchscript-call-saves-over",
    "torchscript-call-answers-with-a-secret",
    "torchscript-call-zeroes-its-input",
    "torchscript-call-counts-calls",
    "torchscript-call-tells-the-time",
    "torchscript-call-answers-at-length",
    "torchscript-trigger-endless",
    "torchscript-trigger-crashes",
    "torchscript-trigger-grows",
    "torchscript-trigger-overwrites",
    "torchscript-trigger-tells-a-secret-in-an-error",
    "torchscript-trigger-raises-control-characters",
    "torchscript-nested-brackets",
    "torchscript-zip-bomb",
    "torchscript-weights-beyond-their-memory",
    "torchscript-pickle-nested",
    "onnx-above",
    "onnx-hard-link",
    "onnx-fifo",
    "onnx-memory-marker",
    "onnx-tree-of-cycles",
    "onnx-loop-as-the-input-says",
    "onnx-doubling-functions",
    "onnx-dice",
    "onnx-bomb-computed-tile",
    "exported-pickled-weights",
    "exported-code-as-size",
    "exported-huge-tensor",
    "foreign-empty-pt",
    "foreign-truncated-torchscript",
)
FILES = {name: item for name, item in files().items() if ALL or name in SAMPLE}

pytestmark = pytest.mark.skipif(bool(missing()), reason="; ".join(missing()) or "confined")


@dataclass
class Server:
    """A running server.

    Args:
        process: of the command.
        address: that it listens on.
        folder: holds `repository`, `bait`, `log` and its temporary files in `tmp`.
    """

    process: subprocess.Popen[bytes]
    address: str
    folder: Path

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def log(self) -> bytes:
        return (self.folder / "log").read_bytes()


def children(parent: int) -> set[int]:
    """The processes below a process."""
    found: dict[int, int] = {}
    for item in Path("/proc").iterdir():
        if item.name.isdigit():
            try:
                fields = (item / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            found[int(item.name)] = int(fields[1])
    below = {pid for pid, its in found.items() if its == parent}
    for pid in list(below):
        below |= {other for other, its in found.items() if its == pid}
    return below


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server with short limits."""
    for name in ("repository", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    ready = folder / "address"
    command = [
        *(sys.executable, "-m", "interpret_server", "serve", "--address=127.0.0.1:0"),
        *("--model-repository", str(folder / "repository"), "--ready-file", str(ready)),
        *("--load-seconds=5", "--step-seconds=3", "--worker-memory-mb=4096"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=folder / "tmp"
        )
    try:
        give_up = time.monotonic() + WAIT
        while not ready.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < give_up, (folder / "log").read_text()
            time.sleep(0.05)
        yield Server(process, ready.read_text(), folder)
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@dataclass
class Siege:
    """What became of a server under attack.

    Args:
        outcomes: by file.
        damage: to the bait.
        watch: of the well-behaved model.
        processes: more than before, once all was over.
    """

    outcomes: dict[str, Outcome]
    damage: list[str]
    watch: Watch
    processes: int


@pytest.fixture(scope="module")
def siege(server: Server) -> Siege:
    bait = Bait(server.folder / "bait")
    bait.lay()
    besieger = Besieger(server.address, server.repository)
    try:
        besieger.load_good()
        before = len(children(server.process.pid))
        with besieger.watched() as watch:
            outcomes = besieger.attack(list(FILES.values()), bait)
        give_up = time.monotonic() + 20
        while (after := len(children(server.process.pid))) > before:
            if time.monotonic() > give_up:
                break
            time.sleep(0.1)
    finally:
        besieger.close()
    return Siege(dict(zip(FILES, outcomes, strict=True)), bait.damage(), watch, after - before)


@pytest.mark.parametrize("item", FILES.values(), ids=FILES)
def test_a_file_is_refused_in_words_or_answers_right(item: HostileFile, siege: Siege) -> None:
    outcome = siege.outcomes[item.name]
    assert not faults(item, outcome), outcome.summary()


def test_a_file_that_ends_its_process_is_not_to_be_tried_again(siege: Siege) -> None:
    message = siege.outcomes["torchscript-load-crashes"].steps["load"].message
    assert "ended its process while it was being loaded" in message
    assert "SIGSEGV" in message
    assert "try again" not in message


def test_nothing_outside_is_read_or_written(siege: Siege, server: Server) -> None:
    assert not siege.damage
    assert not tells(server.log)
    assert not list((server.folder / "tmp").glob("escaped*"))


def test_a_well_behaved_model_answers_all_along(siege: Siege) -> None:
    assert not siege.watch.failures, siege.watch.summary()
    assert len(siege.watch.seconds) > 50


def test_no_process_is_left_behind(siege: Siege) -> None:
    assert siege.processes <= 0


def test_the_log_stays_small_and_printable(siege: Siege, server: Server) -> None:
    assert len(server.log) < 20 << 20
    assert b"\x1b" not in server.log


def test_a_model_that_goes_on_after_its_calls_is_stopped(server: Server) -> None:
    item = files()["torchscript-call-goes-on-in-the-background"]
    item.write(server.folder / "background", Bait(server.folder / "background"))
    besieger = Besieger(server.address, server.folder / "background")
    try:
        outcome = besieger.visit(item, unload=False)
        assert outcome.steps["predict"].code == OK
        give_up = time.monotonic() + 60
        while b"was stopped: it computed for no call" not in server.log:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        assert not faults(item, outcome)
    finally:
        besieger.client.unload_model(item.name)
        besieger.close()


def test_an_upload_that_announces_two_gibibytes_takes_none(server: Server) -> None:
    header = models.UploadHeader(name="announced", size=(2 << 30) - 1)
    sent = [
        models.UploadModelRequest(header=header),
        models.UploadModelRequest(chunk=foreign_files.onnx()),
    ]
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ModelServiceStub(channel).UploadModel(iter(sent), timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        header.size = (2 << 30) + 1
        with pytest.raises(grpc.RpcError) as caught:
            ModelServiceStub(channel).UploadModel(iter(sent), timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_starts_over_a_repository_of_hostile_files(tmp_path: Path) -> None:
    bait = Bait(tmp_path / "bait")
    bait.lay()
    names = ("torchscript-load-endless", "torchscript-load-crashes", "onnx-fifo", "foreign-zeros")
    for name in names:
        files()[name].write(tmp_path / "repository", bait)
    folder = tmp_path / "repository" / GOOD / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(foreign_files.onnx())
    (folder.parent / "model.toml").write_text("shape = [4]\nbounds = [0, 1]\n")
    with serving(tmp_path) as running:
        besieger = Besieger(running.address, running.repository)
        try:
            assert [model.name for model in besieger.client.models()] == [GOOD]
        finally:
            besieger.close()
        log = running.log.decode()
        assert all(f"{name} is not served" in log for name in names)
    assert not bait.damage()
    assert not list((tmp_path / "tmp").iterdir())

"""SIGKILL at any moment: the audit goes on where it was, and its report is the same."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import interpret_client
from interpret_server.audits.report import document as documents
from interpret_server.audits.report.bundle import names, read

KILLS = 20
KILLS_SERVED = int(os.environ.get("INTERPRET_KILLS", "2"))  # each takes as long as a start
SAMPLES = 64
_CHILD = Path(__file__).with_name("audit_child.py")


class Zygote:
    """Starts processes that hold the parts of a server."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_CHILD), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )

    def start(self, command: str, root: Path) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {root}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def status(self) -> int:
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    make_files(tmp_path)
    zygote = Zygote(tmp_path)
    yield zygote
    zygote.close()


def make_files(folder: Path) -> None:
    """A small network, and samples most of which it classifies correctly."""
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    torch.jit.save(torch.jit.trace(net, torch.zeros(2, 6)), folder / "net.pt")
    inputs = np.random.default_rng(0).random((SAMPLES, 6), dtype=np.float32)
    labels = net(torch.from_numpy(inputs)).argmax(1).numpy()
    labels[::9] = (labels[::9] + 1) % 3
    np.save(folder / "x.npy", inputs)
    np.save(folder / "y.npy", labels)


def units(root: Path) -> list[Any]:
    """The stored units, in the order in which they were stored."""
    with closing(sqlite3.connect(root / "audits.sqlite", timeout=30)) as connection:
        query = "select id, batch, stage, seconds, stored from units order by id"
        return connection.execute(query).fetchall()


def state(root: Path) -> tuple[str, int]:
    with closing(sqlite3.connect(root / "audits.sqlite", timeout=30)) as connection:
        found: tuple[str, int] = connection.execute("select state, done from audits").fetchone()
        return found


def bundle(root: Path) -> Path:
    (found,) = root.glob("*/bundle")
    return found


@contextmanager
def limit(seconds: float) -> Iterator[Any]:
    """Something that fails once the time is up."""
    until = time.monotonic() + seconds

    def check() -> None:
        assert time.monotonic() < until, "nothing happens any more"
        time.sleep(0.002)

    yield check


def same_reports(one: Path, other: Path) -> None:
    """Every file equals, byte for byte; of the report all but what says when it was made."""
    assert names(one) == names(other)
    for name in names(one):
        if not name.startswith("report."):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    lasting = [documents.encode(documents.lasting(read(item).document)) for item in (one, other)]
    assert lasting[0] == lasting[1]


@pytest.mark.timeout(600)
def test_an_audit_survives_any_number_of_kills(tmp_path: Path, zygote: Zygote):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for root in (whole, torn):
        zygote.start("create", root)
        assert zygote.status() == 0
    zygote.start("run", whole)
    assert zygote.status() == 0
    total = len(units(whole))
    drawn = random.Random(0)
    for kill in range(KILLS):
        before = units(torn)
        process = zygote.start("run", torn)
        with limit(60) as check:
            if kill < KILLS - 2:  # after some units, in the middle of one
                wanted = min(total - 10, len(before) + drawn.randrange(7))
                while len(units(torn)) < wanted:
                    check()
                time.sleep(drawn.uniform(0.0, 0.5 if wanted == len(before) else 0.04))
            else:  # while the report is being written
                while state(torn)[1] < total:
                    check()
                time.sleep(drawn.uniform(0.0, 0.2))
        os.kill(process, signal.SIGKILL)
        assert zygote.status() in (-signal.SIGKILL, 0)
        assert units(torn)[: len(before)] == before
    zygote.start("run", torn)
    assert zygote.status() == 0
    found = units(torn)
    assert [row[1:3] for row in found] == [row[1:3] for row in units(whole)]
    assert state(torn) == ("finished", total)
    same_reports(bundle(whole), bundle(torn))
    (folder,) = bundle(torn).parent.parent.glob("*/")
    assert not [item for item in folder.rglob(".*") if item.name != ".lock"]


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A real server, with its workers; yields its process and address."""
    ready = folder / "ready"
    command = [Path(sys.executable).with_name("interpret-server"), "serve", "--device", "cpu"]
    options = ["--address", "127.0.0.1:0", "--audit-root", folder / "audits"]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [*command, *options, "--ready-file", ready, "--threads", "1"],
            stdout=log,
            stderr=log,
        )
    try:
        with limit(120) as check:
            while not ready.exists() or not ready.read_text():
                assert process.poll() is None, (folder / "log").read_text()
                check()
        yield process, ready.read_text()
    finally:
        process.kill()
        process.wait(60)
        ready.unlink(missing_ok=True)


@pytest.mark.timeout(900)
def test_an_audit_survives_kills_of_a_server_with_its_workers(tmp_path: Path):
    make_files(tmp_path)
    root, drawn = tmp_path / "audits", random.Random(1)
    inputs, labels = np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy")
    options: dict[str, Any] = {
        "attacks": ["fgsm", "pgd"],
        "norm": "linf",
        "epsilon": [0.05, 0.1],
        "batch_size": 4,
    }
    with (
        served(tmp_path) as (_, address),
        interpret_client.connect(address, timeout=60) as client,
    ):
        client.load_model("net", tmp_path / "net.pt", manifest={"shape": [6], "bounds": [0, 1]})
        whole = client.audit("net", inputs, labels, **options)
        assert whole.wait(timeout=120).state == "finished"
        expected = units(root)
        torn = client.audit("net", inputs, labels, **options)
    total = len(expected)  # the server is gone, and the second audit has hardly begun
    for _ in range(KILLS_SERVED):
        before = units(root)
        with served(tmp_path), limit(60) as check:
            step = drawn.randrange(1, max(2, total // KILLS_SERVED))
            wanted = min(2 * total - 1, len(before) + step)
            while len(units(root)) < wanted:
                check()
            time.sleep(drawn.uniform(0.0, 0.04))
        assert units(root)[: len(before)] == before
    with served(tmp_path) as (_, address), interpret_client.connect(address, timeout=60) as client:
        again = next(item for item in client.audits() if item.id == torn.id)
        assert again.wait(timeout=120).state == "finished"
    found = units(root)
    assert [row[1:3] for row in found[total:]] == [row[1:3] for row in expected]
    assert found[:total] == expected
    same_reports(root / whole.id / "bundle", root / torn.id / "bundle")

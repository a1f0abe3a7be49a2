"""When `interpret-server serve` opens the audits, and what happens where it cannot."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import click
import pytest

from interpret_server.cli import _audits, _resume_audits
from interpret_server.config import Settings
from interpret_server.errors import FailedPrecondition


class Server:
    """Refuses to open its audits."""

    def __init__(self) -> None:
        self.asked = 0

    async def resume_audits(self) -> None:
        self.asked += 1
        raise FailedPrecondition("audit_root: another server uses the folder")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "interpret-server" / "audits"


async def resumed(settings: Settings) -> int:
    server: Any = Server()
    await _resume_audits(settings, server)
    return int(server.asked)


async def test_a_server_without_audits_opens_none(state: Path) -> None:
    assert await resumed(Settings()) == 0


def test_a_server_serves_though_another_one_has_the_audits(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(resumed(Settings())) == 1
    assert "no audits: audit_root: another server uses the folder" in caplog.text


@pytest.mark.parametrize("asked", [{"audit_root": Path("audits")}, {"audit_database": "sqlite://"}])
async def test_audits_that_were_asked_for_must_open(state: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(click.ClickException, match="another server uses the folder"):
        await resumed(Settings(**asked))


async def test_audits_are_made_as_the_settings_say(state: Path, tmp_path: Path) -> None:
    make = _audits(Settings(audit_root=tmp_path / "here", max_audit_mb=1))
    assert make is not None
    worker: Any = object()
    audits = make(worker, None)
    assert not (tmp_path / "here").exists()
    await audits.start()
    assert (tmp_path / "here" / "audits.sqlite").exists()
    assert audits.list() == ()
    await audits.close(0)


def test_without_a_home_there_are_no_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert _audits(Settings()) is None

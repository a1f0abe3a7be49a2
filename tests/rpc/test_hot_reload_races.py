"""Reloading while other things happen: calls, other reloads, unloading, closing."""

import asyncio
from pathlib import Path

import pytest
from reloading import Stage, errors, scaling, staged, until

from interpret_server.errors import NotFound, Unavailable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


async def test_a_name_answers_at_every_moment_while_its_versions_change(root: Path) -> None:
    async with staged(root) as stage:
        stage.loader.ready = {str(version): scaling(version) for version in range(7)}
        stage.write("net/0/model.pt", "0")
        stage.write("net/versions.toml", 'labels = {stable = "0"}')
        await stage.reloader.update()
        stop = False
        answers: list[float] = []

        async def caller(name: str) -> None:
            while not stop:
                answers.append(await stage.scale(name))

        callers = [asyncio.create_task(caller(name)) for name in ("net", "net@stable") * 2]
        for version in range(1, 7):
            stage.write(f"net/{version}/model.pt", str(version))
            stage.write("net/versions.toml", f'labels = {{stable = "{version}"}}')
            stage.remove(f"net/{version - 1}")
            assert await stage.reloader.update() == ()
            reached = len(answers)
            await until(lambda reached=reached: len(answers) > reached + 8)
            assert set(answers[-4:]) == {version}
        stop = True
        await asyncio.gather(*callers)
        assert stage.listed() == {"net": "6"}
        assert sorted(set(answers)) == list(range(7))


async def test_two_updates_at_once_load_each_version_once(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.loader.go.clear()
        updates = [asyncio.create_task(stage.reloader.update()) for _ in range(2)]
        await until(stage.loader.begun.is_set)
        stage.loader.go.set()
        assert await asyncio.gather(*updates) == [(), ()]
        assert stage.loader.loads == ["net@1 1"]


async def test_calls_during_a_reload_are_answered_by_the_old_model(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        stage.loader.begun.clear()
        stage.loader.go.clear()
        stage.write("net/1/model.pt", "2")
        update = asyncio.create_task(stage.reloader.update())
        await until(stage.loader.begun.is_set)
        assert await stage.scale() == 1
        stage.loader.go.set()
        await update
        assert await stage.scale() == 2


async def test_a_model_unloaded_during_its_reload_comes_back_reloaded(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        stage.loader.begun.clear()
        stage.loader.go.clear()
        stage.write("net/1/model.pt", "2")
        update = asyncio.create_task(stage.reloader.update())
        await until(stage.loader.begun.is_set)
        await stage.names.unload("net")
        with pytest.raises(NotFound):
            await stage.scale()
        stage.loader.go.set()
        assert await update == ()
        assert await stage.scale() == 2


async def test_closing_during_a_reload_ends_it_without_a_complaint(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.loader.go.clear()
        update = asyncio.create_task(stage.reloader.update())
        await until(stage.loader.begun.is_set)
        await stage.names.close(0)
        stage.loader.go.set()
        assert await update == ()
        with pytest.raises(Unavailable):
            await stage.scale("net@1")
        assert errors(caplog) == []


async def _watched(stage: Stage, seconds: float) -> None:
    watching = asyncio.create_task(stage.reloader.watch(seconds))
    try:
        stage.write("net/1/model.pt", "1")
        if not seconds:
            stage.reloader.ask()
        await until(lambda: stage.listed() == {"net": "1"})
        stage.write("net/1/model.pt", "corrupt")
        if not seconds:
            stage.reloader.ask()
        await until(lambda: "net@1 corrupt" in stage.loader.loads)
        assert await stage.scale() == 1
    finally:
        watching.cancel()


@pytest.mark.parametrize("seconds", [0.0, 0.01])
async def test_changes_are_noticed_when_asked_and_at_intervals(root: Path, seconds: float) -> None:
    async with staged(root) as stage:
        await _watched(stage, seconds)

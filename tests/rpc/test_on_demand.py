"""Models of the repository that are loaded when they are first called."""

import asyncio
from pathlib import Path

import pytest
from reloading import staged

from interpret_server.errors import FailedPrecondition, NotFound

ON_DEMAND = 'load = "on_demand"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


async def test_the_first_call_loads_a_model_once(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("net/versions.toml", ON_DEMAND + 'labels = {stable = "1"}')
        assert await stage.reloader.update() == ()
        assert stage.listed() == {}
        assert stage.loader.loads == []
        scales = await asyncio.gather(*(stage.scale(name) for name in ("net", "net@stable", "net")))
        assert scales == [1, 1, 1]
        assert stage.loader.loads == ["net@1 1"]
        assert stage.listed() == {"net": "1"}


async def test_a_model_that_was_called_is_reloaded_like_any_other(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("net/versions.toml", ON_DEMAND)
        await stage.reloader.update()
        assert await stage.scale("net@1") == 1
        stage.write("net/2/model.pt", "2")
        await stage.reloader.update()
        assert await stage.scale() == 2


async def test_a_failure_is_told_and_tried_again(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "corrupt")
        stage.write("net/versions.toml", ON_DEMAND)
        assert await stage.reloader.update() == ()
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="model net is not served"):
                await stage.scale()
        assert stage.loader.loads == ["net@1 corrupt"] * 2
        stage.write("net/1/model.pt", "3")
        await stage.reloader.update()
        assert await stage.scale() == 3


async def test_a_removed_model_is_expected_no_more(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("net/versions.toml", ON_DEMAND)
        await stage.reloader.update()
        stage.remove("net")
        await stage.reloader.update()
        with pytest.raises(NotFound):
            await stage.scale()


async def test_an_unknown_time_is_refused(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("net/versions.toml", 'load = "later"')
        (sentence,) = await stage.reloader.update()
        assert "load" in sentence
        assert '"at_start" or "on_demand"' in sentence

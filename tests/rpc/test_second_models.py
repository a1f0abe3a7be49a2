"""The names of second models: aliases, versions, and models that are loaded on demand."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from reloading import Stage, staged

from interpret_server.engine.api import Array, Call, Result
from interpret_server.errors import InvalidRequest, NotFound

ON_DEMAND = 'load = "on_demand"\nlabels = {stable = "1"}'
ROWS = Array("float32", (1, 2), bytes(8))


async def judge(stage: Stage, model: str, judge: str) -> Result:
    call = Call(model, "agreement", inputs=ROWS, models={"judge": judge})
    async with aclosing(stage.names.run(call)) as events:
        return [event async for event in events][-1]


async def test_names_of_second_models_are_looked_up(tmp_path: Path) -> None:
    async with staged(tmp_path / "models") as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("other/1/model.pt", "2")
        stage.write("other/2/model.pt", "3")
        stage.write("other/versions.toml", 'serve = "all"\nlabels = {stable = "1"}')
        assert await stage.reloader.update() == ()
        for name, own in {"other": "other@2", "other@stable": "other@1", "net": "net@1"}.items():
            (second,) = (await judge(stage, "net", name)).provenance.models
            assert (second.role, second.model) == ("judge", own)
        with pytest.raises(NotFound, match=r"models\.judge: there is no model 'nobody'"):
            await judge(stage, "net", "nobody")


async def test_second_models_are_loaded_on_demand(tmp_path: Path) -> None:
    async with staged(tmp_path / "models") as stage:
        for name in ("net", "other"):
            stage.write(f"{name}/1/model.pt", "1")
            stage.write(f"{name}/versions.toml", ON_DEMAND)
        await stage.reloader.update()
        assert stage.loader.loads == []
        answers = await asyncio.gather(
            judge(stage, "net", "other@stable"), judge(stage, "other", "net")
        )
        assert [answer.provenance.models[0].model for answer in answers] == ["other@1", "net@1"]
        assert sorted(stage.loader.loads) == ["net@1 1", "other@1 1"]


async def test_a_plugin_without_roles_takes_no_second_model(tmp_path: Path) -> None:
    async with staged(tmp_path / "models") as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        call = Call("net", "_predict", inputs=ROWS, models={"judge": "net"})
        with pytest.raises(InvalidRequest) as caught:
            async for _ in stage.names.run(call):
                pass
        assert caught.value.violations[0].field == "models.judge"

"""Models that the front end keeps copies of, and those that it loads for itself."""

import asyncio
import shutil
from pathlib import Path

import pytest
from fleets import MANIFEST, archive, calling, fleet_of, result

from interpret_server.engine.stored import read_stored
from interpret_server.errors import NotFound


async def test_a_copy_outlives_the_server_and_the_upload_that_brought_the_model(
    tmp_path: Path,
) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    async with fleet_of() as fleet:
        loaded = await fleet.load("net", archive(upload / "model", 3.0), MANIFEST)
        shutil.rmtree(upload)  # as an upload's folder is when its call ends
        first = await result(fleet, calling("net"))
        stored = await fleet.keep("net", tmp_path / "kept")
        with pytest.raises(NotFound, match="there is no model 'other'"):
            await fleet.keep("other", tmp_path / "other")
    assert stored == read_stored(tmp_path / "kept")
    async with fleet_of() as fleet:
        again = await fleet.load("_audit-1", stored.path, stored.manifest, samples=stored.samples)
        second = await result(fleet, calling("_audit-1"))
        own = await result(fleet, calling("_audit-1"))
        answers = await result(fleet, calling("_audit-1", "_original"))
        with pytest.raises(NotFound, match=r"no model 'net'; loaded: none$"):
            await result(fleet, calling("net"))
        await fleet.unload("_audit-1")
    assert (again.sha256, again.version) == (loaded.sha256, loaded.version)
    assert second.before == first.before
    assert answers.tensors["logits"] == own.tensors["logits"] == answers.tensors["scores"]
    assert stored.path.is_file()


async def test_a_model_that_is_unloaded_meanwhile_is_copied_first(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    async with fleet_of() as fleet:
        await fleet.load("net", archive(upload / "model"), MANIFEST)
        shutil.rmtree(upload)
        keeping = asyncio.create_task(fleet.keep("net", tmp_path / "kept"))
        await asyncio.sleep(0)
        unloading = asyncio.create_task(fleet.unload("net"))
        stored = await keeping
        await unloading
    assert stored.path.is_file()

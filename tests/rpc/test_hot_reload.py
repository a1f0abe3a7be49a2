"""The repository changes while models serve."""

import asyncio
import gc
import weakref
from pathlib import Path
from shutil import move

import pytest
from reloading import errors, staged, until

from interpret_server.errors import AlreadyExists, NotFound
from interpret_server.models.manifest import Manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


async def test_a_new_version_takes_the_name_and_the_old_one_goes(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        assert await stage.reloader.update() == ()
        assert await stage.scale() == await stage.scale("net@1") == 1
        stage.write("net/2/model.pt", "2")
        assert await stage.reloader.update() == ()
        assert await stage.scale() == await stage.scale("net@2") == 2
        assert stage.listed() == {"net": "2"}
        with pytest.raises(NotFound):
            await stage.scale("net@1")
        assert stage.loader.loads == ["net@1 1", "net@2 2"]


async def test_a_removed_version_gives_the_name_back_to_the_one_before(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("net/2/model.pt", "2")
        await stage.reloader.update()
        assert stage.loader.loads == ["net@2 2"]
        stage.remove("net/2")
        await stage.reloader.update()
        assert await stage.scale() == 1
        assert stage.listed() == {"net": "1"}


async def test_what_did_not_change_is_not_loaded_again(root: Path) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        for again in (False, False, True):
            await stage.reloader.update(again=again)
        stage.write("net/versions.toml", 'labels = {stable = "1"}')
        await stage.reloader.update()
        assert await stage.scale("net@stable") == 1
        assert stage.loader.loads == ["net@1 1"]


@pytest.mark.parametrize("path", ["net/1/model.toml", "net/model.toml"])
async def test_a_changed_manifest_reloads_and_labels_come_from_their_file(
    root: Path, path: str
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        stage.write("net/labels.txt", "cat\ndog\n")
        await stage.reloader.update()
        assert stage.names.find("net").labels == ("cat", "dog")
        stage.write(path, 'labels = ["a", "b"]')
        await stage.reloader.update()
        assert stage.names.find("net").labels == ("a", "b")
        assert len(stage.loader.loads) == 3


@pytest.mark.parametrize(
    ("text", "sentence"), [("corrupt", "the file is corrupt"), ("broken", "internal error")]
)
async def test_a_failed_reload_keeps_the_old_model_and_says_so_once(
    root: Path, text: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        stage.write("net/1/model.pt", text)
        await stage.reloader.update()
        (line,) = [item for item in errors(caplog) if item.startswith("model ")]
        assert line.startswith(f"model net@1 is not reloaded: {sentence}")
        assert line.endswith("; what was loaded before goes on")
        for _ in range(2):
            await stage.reloader.update()
        assert errors(caplog) == []
        assert len(stage.loader.loads) == 2
        assert await stage.scale() == 1
        stage.write("net/1/model.pt", "3")
        await stage.reloader.update()
        assert await stage.scale() == 3


async def test_a_new_version_that_fails_leaves_the_name_with_the_old_one(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        stage.write("net/2/model.pt", "corrupt")
        stage.remove("net/1")
        await stage.reloader.update()
        assert errors(caplog) == [
            "model net@2 is not served: the file is corrupt; net goes on as net@1"
        ]
        assert await stage.scale() == await stage.scale("net@1") == 1
        stage.write("net/2/model.pt", "2")
        await stage.reloader.update()
        assert await stage.scale() == 2
        assert stage.listed() == {"net": "2"}


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("net/versions.toml", "serve = 1", "versions.serve: give"),
        ("net/1/model.toml", "bounds = [1, 0]", "manifest.inputs[0].bounds"),
        ("net/1/model.onnx", "2", "model.pt and model.onnx"),
    ],
)
async def test_what_cannot_be_read_changes_nothing_that_is_served(
    root: Path, path: str, text: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        stage.write(path, text)
        for _ in range(3):
            await stage.reloader.update()
        (line,) = errors(caplog)
        assert sentence in line
        assert "is not reloaded" in line
        assert await stage.scale() == await stage.scale("net@1") == 1


async def test_a_removed_folder_unloads_and_a_lost_repository_does_not(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("other/1/model.pt", "2")
        await stage.reloader.update()
        move(root, root.with_name("away"))
        for _ in range(2):
            await stage.reloader.update()
        assert errors(caplog) == ["nothing is reloaded: the model repository is not a folder"]
        assert stage.listed() == {"net": "1", "other": "1"}
        move(root.with_name("away"), root)
        stage.remove("net")
        await stage.reloader.update()
        await until(lambda: stage.listed() == {"other": "1"})
        with pytest.raises(NotFound):
            await stage.scale()


async def test_a_model_that_came_and_failed_is_forgotten_with_its_folder(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "corrupt")
        assert await stage.reloader.update() == ("model net is not served: the file is corrupt",)
        stage.remove("net")
        assert await stage.reloader.update() == ()
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        assert await stage.scale() == 1


async def test_a_call_finishes_on_the_model_it_began_with_whose_memory_then_goes(
    root: Path,
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        old = weakref.ref(stage.worker._served["net@1"].classifier)
        running = asyncio.create_task(stage.call("net", "hold"))
        await until(stage.hold.begun.is_set)
        stage.write("net/2/model.pt", "2")
        await stage.reloader.update()
        assert stage.listed() == {"net": "2"}
        assert old() is not None
        gc.disable()
        try:
            stage.hold.go.set()
            result = await running
            assert stage.hold.seen == [1, 1]
            assert result.provenance.model_version == "1"
            assert await stage.scale() == 2
            await until(lambda: old() is None)
        finally:
            gc.enable()


async def test_labels_move_at_once_and_load_nothing_twice(root: Path) -> None:
    async with staged(root) as stage:
        for version in ("1", "2", "3"):
            stage.write(f"net/{version}/model.pt", version)
        stage.write(
            "net/versions.toml",
            'serve = "all"\ndefault = "2"\nlabels = {stable = "1", canary = "3"}',
        )
        await stage.reloader.update()
        names = ("net", "net@stable", "net@canary", "net@1", "net@2", "net@3")
        assert [await stage.scale(name) for name in names] == [2, 1, 3, 1, 2, 3]
        assert stage.listed() == {"net": "2", "net@1": "1", "net@3": "3"}
        assert "It also answers to net@2." in stage.names.find("net").notes
        assert "It also answers to net@stable." in stage.names.find("net@1").notes
        stage.write(
            "net/versions.toml",
            'serve = ["1", "3"]\nlabels = {stable = "3", canary = "3"}',
        )
        await stage.reloader.update()
        assert [await stage.scale(name) for name in ("net", "net@stable", "net@canary")] == [3] * 3
        assert stage.listed() == {"net": "3", "net@1": "1"}
        assert "It also answers to net@3 and net@canary and net@stable." in (
            stage.names.find("net@stable").notes
        )
        assert len(stage.loader.loads) == 3


async def test_a_label_stays_where_it_is_until_its_version_loads(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        stage.write("net/versions.toml", 'serve = "all"\nlabels = {stable = "1"}')
        await stage.reloader.update()
        stage.write("net/2/model.pt", "corrupt")
        stage.write("net/versions.toml", 'serve = ["2"]\nlabels = {stable = "2"}')
        await stage.reloader.update()
        assert await stage.scale("net@stable") == await stage.scale() == 1
        stage.write("net/versions.toml", 'serve = ["2"]')
        stage.write("net/2/model.pt", "2")
        await stage.reloader.update()
        with pytest.raises(NotFound):
            await stage.scale("net@stable")
        assert stage.listed() == {"net": "2"}


async def test_a_clients_model_keeps_its_name_and_the_conflict_is_reported(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("7")
    async with staged(root) as stage:
        await stage.names.load("net", file, Manifest())
        await stage.names.load("mine", file, Manifest())
        stage.write("net/1/model.pt", "1")
        for _ in range(2):
            await stage.reloader.update()
        (line,) = errors(caplog)
        assert "a client's model has this name" in line
        assert [await stage.scale(name) for name in ("net", "net@1", "mine")] == [7, 1, 7]
        assert stage.listed() == {"mine": "1", "net": "1", "net@1": "1"}
        await stage.names.unload("net")
        assert await stage.scale() == 1
        stage.remove("net")
        await stage.reloader.update()
        await until(lambda: stage.listed() == {"mine": "1"})


async def test_a_client_replaces_and_unloads_a_version_until_its_files_change(
    root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("7")
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()
        with pytest.raises(AlreadyExists, match="ask to replace it"):
            await stage.names.load("net", file, Manifest())
        await stage.names.load("net", file, Manifest(), replace=True)
        await until(lambda: len(stage.worker.models()) == 1)
        assert await stage.scale() == 7
        await stage.names.unload("net")
        await stage.reloader.update()
        assert stage.listed() == {}
        stage.write("net/1/model.pt", "2")
        await stage.reloader.update()
        assert await stage.scale() == 2
        await stage.names.unload("net")
        with pytest.raises(NotFound):
            await stage.names.unload("net@1")
        await stage.reloader.update()
        assert stage.listed() == {}
        await stage.reloader.update(again=True)
        assert await stage.scale() == 2


async def test_a_folder_that_still_changes_is_left_alone(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(root) as stage:
        stage.write("net/1/model.pt", "1")
        await stage.reloader.update()

        async def look() -> float:
            await stage.reloader.update(patient=True)
            return await stage.scale()

        file = root / "net/2/model.pt"
        file.parent.mkdir()
        file.write_text("")
        assert await look() == 1
        file.write_text("1")
        assert await look() == 1
        file.write_text("12")
        assert await look() == 1
        assert await look() == 12
        assert stage.loader.loads == ["net@1 1", "net@2 12"]
        stage.remove("net")
        assert await look() == 12
        await stage.reloader.update(patient=True)
        await until(lambda: stage.listed() == {})
        assert errors(caplog) == []

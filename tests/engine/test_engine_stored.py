"""Copies of models' files, and the models that are loaded from them."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import threading
import warnings
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_fakes import array, calling, linear, result, tensor, until
from onnx import TensorProto, helper, numpy_helper

from interpret_server.engine.api import ModelInfo
from interpret_server.engine.local import LocalWorker
from interpret_server.engine.stored import ModelFiles, read_stored
from interpret_server.errors import AlreadyExists, FailedPrecondition, NotFound
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

MANIFEST = Manifest.model_validate({"shape": [4], "bounds": [0, 1], "version": "7"})


@asynccontextmanager
async def serving() -> Any:
    worker = LocalWorker(Registry(), device="cpu")
    try:
        yield worker
    finally:
        await worker.close()


def archive(path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Linear(4, 3), torch.zeros(1, 4)).save(str(path))
    return path


def with_data_beside(path: Path) -> Path:
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["z"], transB=1)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        model, str(path), save_as_external_data=True, location="net.weights", size_threshold=0
    )
    return path


async def answers(worker: LocalWorker) -> torch.Tensor:
    rows = array(np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4))
    return tensor((await result(worker, calling("_predict", rows))).tensors["logits"])


@pytest.mark.parametrize("make", [archive, with_data_beside])
async def test_the_same_model_is_loaded_from_a_copy_when_its_files_are_gone(
    tmp_path: Path, make: Any
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    path = make(own / "net.model")
    (own / "another.txt").write_text("not the model's")
    samples = own / "some.npy"
    np.save(samples, np.full((3, 4), 0.5, np.float32))
    async with serving() as worker:
        loaded = await worker.load("net", path, MANIFEST, samples=samples)
        first = await answers(worker)
        stored = await worker.keep("net", tmp_path / "kept")
    shutil.rmtree(own)
    assert read_stored(tmp_path / "kept") == stored
    assert stored.sha256 == hashlib.sha256(stored.path.read_bytes()).hexdigest() == loaded.sha256
    assert stored.manifest == MANIFEST
    assert stored.manifest.model_fields_set == MANIFEST.model_fields_set
    names = {item.name for item in (tmp_path / "kept" / "model").iterdir()}
    assert names == {"net.model", *loaded.files}
    async with serving() as worker:
        again = await worker.load("net", stored.path, stored.manifest, samples=stored.samples)
        assert torch.equal(await answers(worker), first)
    assert again == loaded
    assert again.version == "7"


async def test_nothing_is_left_of_a_copy_that_fails(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pt")
    async with serving() as worker:
        await worker.load("net", path, MANIFEST)
        with pytest.raises(NotFound, match="there is no model 'other'"):
            await worker.keep("other", tmp_path / "kept")
        path.write_bytes(b"another file")
        with pytest.raises(FailedPrecondition, match="has changed since it was loaded"):
            await worker.keep("net", tmp_path / "kept")
        path.unlink()
        with pytest.raises(FailedPrecondition, match="No such file"):
            await worker.keep("net", tmp_path / "nowhere" / "kept")
        await worker.load("net", with_data_beside(tmp_path / "net.onnx"), MANIFEST, replace=True)
        (tmp_path / "net.weights").unlink()
        with pytest.raises(FailedPrecondition, match="No such file"):
            await worker.keep("net", tmp_path / "kept")
        (tmp_path / "net.onnx").unlink()
        worker.add("lent", linear(name="lent"))
        with pytest.raises(FailedPrecondition, match="was not loaded from a file"):
            await worker.keep("lent", tmp_path / "kept")
    assert os.listdir(tmp_path) == []
    with pytest.raises(NotFound, match="kept holds no stored model"):
        read_stored(tmp_path / "kept")


async def test_a_copy_that_is_given_up_is_over_when_the_caller_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    fill = ModelFiles._fill

    def slowly(files: ModelFiles, made: Path, info: ModelInfo) -> None:
        begun.set()
        assert go.wait(20)
        fill(files, made, info)

    monkeypatch.setattr(ModelFiles, "_fill", slowly)
    path = archive(tmp_path / "net.pt")
    async with serving() as worker:
        await worker.load("net", path, MANIFEST)
        keeping = asyncio.create_task(worker.keep("net", tmp_path / "kept"))
        await asyncio.to_thread(begun.wait, 20)
        keeping.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(keeping), 0.05)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await keeping
        assert sorted(os.listdir(tmp_path)) == ["kept", "net.pt"]


async def test_a_file_that_went_since_it_was_loaded_is_copied_as_long_as_the_model_is_served(
    tmp_path: Path,
) -> None:
    async with serving() as worker:
        path = archive(tmp_path / "net.pt")
        content = path.read_bytes()
        await worker.load("net", path, MANIFEST)
        path.unlink()  # as an upload's is when its call ends
        stored = await worker.keep("net", tmp_path / "kept")
        again = await worker.keep("net", tmp_path / "again")
        assert stored.path.read_bytes() == again.path.read_bytes() == content
        assert stored.path.name == "net.pt"
        assert str(path) in open_files()
        await worker.unload("net")
        await until(lambda: str(path) not in open_files())  # the thread that copied may be behind


def open_files() -> str:
    """What this process has open, with the names of files that are gone."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return "\n".join(found)


async def test_a_copy_never_replaces_another(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pt")
    async with serving() as worker:
        await worker.load("net", path, MANIFEST)
        stored = await worker.keep("net", tmp_path / "kept")
        with pytest.raises(AlreadyExists, match="kept exists already"):
            await worker.keep("net", tmp_path / "kept")
        both = await asyncio.gather(
            *(worker.keep("net", tmp_path / "again") for _ in range(2)), return_exceptions=True
        )
    assert read_stored(tmp_path / "kept") == stored
    assert sorted(type(item).__name__ for item in both)[-1] == "StoredModel"
    assert sorted(os.listdir(tmp_path)) == ["again", "kept", "net.pt"]


def told(path: Path, *files: str) -> ModelInfo:
    """What a worker says of a file."""
    from interpret_server.engine.describe import describe_classifier

    info = describe_classifier("net", linear(), 8)
    return replace(info, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), files=files)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "a/b", "link", "folder"])
def test_a_worker_cannot_have_other_files_copied(tmp_path: Path, name: str) -> None:
    own = tmp_path / "own"
    (own / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (own / "link").symlink_to(tmp_path / "secret")
    path = archive(own / "net.pt")
    with pytest.raises(FailedPrecondition):
        ModelFiles(path, MANIFEST).store(told(path, name), tmp_path / "kept")
    assert sorted(os.listdir(tmp_path)) == ["own", "secret"]

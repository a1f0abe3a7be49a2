"""Networks that misbehave at a call: what the engine makes of it, in one process."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interpret_server.engine.api import Array, Call, Result, Target
from interpret_server.engine.local import LocalWorker
from interpret_server.errors import FailedPrecondition, ModelRejected
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.sources import brief
from interpret_server.registry import Registry

from . import exported_files
from .bait import Bait
from .corpus import files
from .kinds import CALM, MANIFEST, TRIGGER, TRIGGERED, honest
from .torchscript_archive import HONEST, source, write_source


def written(path: Path, forward: str) -> Path:
    write_source(path, source(forward))
    return path


async def called(path: Path, plugin: str, x: np.ndarray, **fields: object) -> Result:
    worker = LocalWorker(Registry.installed(), device="cpu")
    try:
        await worker.load("net", path, Manifest.model_validate(MANIFEST))
        call = Call("net", plugin, inputs=Array("float32", x.shape, x.tobytes()), **fields)
        *_, last = [event async for event in worker.run(call)]
        assert isinstance(last, Result)
        return last
    finally:
        await worker.close()


@pytest.mark.parametrize("name", ["zeroes", "resizes", "swaps", "frees"])
async def test_a_network_that_writes_to_its_input_writes_to_a_copy(
    name: str, tmp_path: Path
) -> None:
    item = files()[f"torchscript-call-{name}-its-input"]
    path = item.write(tmp_path, Bait(tmp_path))
    result = await called(path, "pgd", CALM, targets=(Target("class", (1,)),), seeds=(0,))
    near = np.frombuffer(result.tensors["adversarial"].data, np.float32).reshape(CALM.shape)
    assert np.abs(near - CALM).max() <= 8 / 255 + 1e-6
    assert np.allclose([row.logits for row in result.before], -np.sort(-honest(CALM)), atol=1e-6)


FAILING = {
    "raises": ("self.n = int(x[0, 7])", r"does not run on these rows \(.*out of range"),
    "other rows": ("return torch.ones([9, 3])", r"logits of shape \[2, 9, 3\] for 2"),
    "other classes": ("return torch.ones([1, 8])", r"logits of shape \[2, 8\] for 2"),
}


@pytest.mark.parametrize(("statement", "told"), FAILING.values(), ids=FAILING)
async def test_a_network_that_fails_on_some_rows_is_told_as_the_reason(
    statement: str, told: str, tmp_path: Path
) -> None:
    forward = f"if bool(torch.any(torch.eq(x, {TRIGGER}))):\n  {statement}\n{HONEST}"
    path = written(tmp_path / "model.pt", forward)
    result = await called(path, "_predict", CALM)
    logits = np.frombuffer(result.tensors["logits"].data, np.float32).reshape(2, 3)
    assert np.allclose(logits, honest(CALM))
    with pytest.raises(FailedPrecondition, match=f"^inputs: the network of net .*{told}") as caught:
        await called(path, "_predict", TRIGGERED)
    assert caught.value.message.isprintable()


async def test_a_network_without_gradient_on_some_rows_is_told_as_the_reason(
    tmp_path: Path,
) -> None:
    spoilt = "  x = torch.exp(x)\n  y = torch.mul_(torch.detach(x), 2.)\n"
    forward = f"if bool(torch.any(torch.eq(x, {TRIGGER}))):\n{spoilt}{HONEST}"
    path = written(tmp_path / "model.pt", forward)
    targets = (Target("class", (1,)),)
    result = await called(path, "saliency", CALM, targets=targets)
    gradient = np.frombuffer(result.tensors["attributions"].data, np.float32).reshape(2, 4)
    assert np.allclose(gradient, np.eye(4)[1])
    with pytest.raises(FailedPrecondition, match="has no gradient at these rows"):
        await called(path, "saliency", TRIGGERED, targets=targets)


def test_a_program_that_fails_after_its_first_trials_is_refused(tmp_path: Path) -> None:
    forward = f"self.n = self.n + 1\nif torch.gt(self.n, 3):\n  self.n = int(x[0, 7])\n{HONEST}"
    path = written(tmp_path / "model.pt", forward)
    with pytest.raises(ModelRejected, match=r"^the file's program fails \(.*out of range"):
        load_classifier("net", path, Manifest.model_validate(MANIFEST), device=torch.device("cpu"))


def test_an_exported_program_of_too_many_nodes_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_files, "MANY_NODES", 60_000)
    path = files()["exported-many-nodes"].write(tmp_path, Bait(tmp_path))
    with pytest.raises(ModelRejected, match=r"has 6000\d nodes; at most 50000"):
        load_classifier("net", path, Manifest.model_validate(MANIFEST), device=torch.device("cpu"))


def test_what_a_program_says_is_told_in_printable_characters() -> None:
    assert brief(ValueError("first\nbuiltins.ValueError: two\x1b[2J\x00\u202e words")) == (
        "two?[2J?? words"
    )
    assert len(brief(ValueError("x" * 10_000))) == 300
    with pytest.raises(NotImplementedError) as caught:
        torch.ones(2).to_sparse().to_mkldnn()
    assert brief(caught.value).startswith("Could not run 'aten::to_mkldnn' with arguments from")
    assert "/" not in brief(caught.value)

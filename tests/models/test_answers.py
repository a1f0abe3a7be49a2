"""What files themselves answer, against the runtimes called directly."""

import shutil
import warnings
from collections.abc import Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from interpret_plugins.attacks.fgsm import FGSM
from interpret_server.engine.api import Array, Call, Result
from interpret_server.engine.arrays import to_array, to_tensor
from interpret_server.engine.local import LocalWorker
from interpret_server.errors import FailedPrecondition, InvalidRequest
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry
from interpret_server.testing import classifier

SHAPE, ROWS = (3, 4, 4), 6
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGE = {"shape": SHAPE, "bounds": (0, 1), "mean": MEAN, "std": STD}

Ends = dict[str, tuple[int, Callable[[Tensor], Tensor], str | None, str]]
ENDS: Ends = {  # numbers in a row before the end, the end, its ONNX operator, `logits_from`
    "logits": (5, lambda z: z, None, "logits"),
    "softmax": (5, lambda z: z.softmax(1), "Softmax", "softmax"),
    "log_softmax": (5, lambda z: z.log_softmax(1), "LogSoftmax", "log_softmax"),
    "sigmoids": (5, torch.sigmoid, "Sigmoid", "sigmoid"),
    "single_logit": (1, lambda z: z, None, "logits"),
    "single_probability": (1, torch.sigmoid, "Sigmoid", "sigmoid"),
    "argmax": (5, lambda z: z.argmax(1), "ArgMax", "argmax"),
}


class Net(nn.Module):
    def __init__(self, end: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(16, ENDS[end][0])
        nn.init.normal_(self.last.weight)  # so that the rows' decisions differ
        self.end = ENDS[end][1]

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(torch.relu(self.conv(x)).flatten(1)))


def onnx_file(net: Net, end: str, path: Path) -> None:
    operator = ENDS[end][2]
    attributes = {} if operator == "Sigmoid" else {"axis": 1}
    attributes |= {"keepdims": 0} if operator == "ArgMax" else {}
    last = [] if operator is None else [helper.make_node(operator, ["z"], ["out"], **attributes)]
    element = TensorProto.INT64 if end == "argmax" else TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("Gemm", ["f", "last.weight", "last.bias"], ["z"], transB=1),
            *last,
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("out" if last else "z", element, None)],
        [
            numpy_helper.from_array(value.detach().numpy(), name)
            for name, value in net.named_parameters()
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


def saved(end: str, kind: str, folder: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
    """A file, and what a runtime called directly gives for its normalised rows."""
    net, path = Net(end).eval(), folder / f"model.{kind}"
    if kind == "onnx":
        onnx_file(net, end, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return path, lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    if kind == "pt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(net, torch.rand(2, *SHAPE)).save(str(path))
            archive = torch.jit.load(str(path))
        return path, archive
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"x": {0: batch}}
    torch.export.save(
        torch.export.export(net, (torch.rand(2, *SHAPE),), dynamic_shapes=shapes), path
    )
    return path, torch.export.load(path).module()


@asynccontextmanager
async def serving(*plugins: Any) -> Any:
    registry = Registry()
    for plugin in plugins:
        registry.add(plugin, "tests")
    worker = LocalWorker(registry, device="cpu")
    try:
        yield worker
    finally:
        await worker.close()


async def ask(worker: LocalWorker, plugin: str, inputs: Any, **more: Any) -> dict[str, Tensor]:
    call = Call("net", plugin, inputs=inputs, **more)
    (found,) = [event async for event in worker.run(call) if isinstance(event, Result)]
    return {name: to_tensor(value, name).clone() for name, value in found.tensors.items()}


def expected_scores(end: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and decisions of what a runtime gave."""
    if end == "argmax":
        return nn.functional.one_hot(values, 5).float(), values
    if end == "single_logit":
        return torch.cat([torch.zeros_like(values), values], 1), (values[:, 0] > 0).long()
    if end == "single_probability":
        return torch.cat([1 - values, values], 1), (values[:, 0] > 0.5).long()
    return values, values.argmax(1)


@pytest.mark.parametrize("kind", ["pt", "onnx", "pt2"])
@pytest.mark.parametrize("end", ENDS)
async def test_scores_are_exactly_those_of_the_runtime(tmp_path: Path, end: str, kind: str) -> None:
    path, direct = saved(end, kind, tmp_path)
    x = torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (MEAN, STD))
    labels = {} if ENDS[end][0] == 1 else {"labels": tuple("abcde")}
    async with serving() as worker:
        info = await worker.load("net", path, Manifest.model_validate(IMAGE | labels))
        found = await ask(worker, "_original", to_array(x), alone=True)
        again = await ask(worker, "_original", to_array(found["inputs"]))
        ours = await ask(worker, "_predict", to_array(x), alone=True)
    with torch.no_grad():
        scores, classes = expected_scores(end, direct((x - mean) / std))
    assert info.logits_from == ENDS[end][3]
    assert torch.equal(found["inputs"], x)
    assert torch.equal(found["scores"], scores)
    assert torch.equal(found["classes"], classes)
    assert len(found["classes"].unique()) > 1
    assert torch.equal(found["logits"], ours["logits"])
    assert torch.equal(found["logits"].argmax(1), classes)
    assert all(torch.equal(again[name], value) for name, value in found.items())


async def test_what_an_attack_returns_is_taken_as_it_is(tmp_path: Path) -> None:
    path, direct = saved("softmax", "pt", tmp_path)
    x = torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (MEAN, STD))
    async with serving(FGSM()) as worker:
        await worker.load("net", path, Manifest.model_validate(IMAGE))
        attacked = await ask(worker, "fgsm", to_array(x), alone=True)
        found = await ask(worker, "_original", to_array(attacked["adversarial"]), alone=True)
    assert not torch.equal(attacked["adversarial"], x)
    assert torch.equal(found["inputs"], attacked["adversarial"])
    with torch.no_grad():
        assert torch.equal(found["scores"], direct((attacked["adversarial"] - mean) / std))


async def test_encoded_images_give_the_rows_that_plugins_see(tmp_path: Path) -> None:
    path, _ = saved("logits", "pt", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    async with serving() as worker:
        await worker.load("net", path, Manifest.model_validate(IMAGE))
        found = await ask(worker, "_original", (file.getvalue(),))
        again = await ask(worker, "_original", to_array(found["inputs"]))
        told = await ask(worker, "_decode", (file.getvalue(),) * 2)
        with pytest.raises(InvalidRequest, match=r"inputs\.images\[1\]: the image is truncated"):
            await ask(worker, "_decode", (file.getvalue(), file.getvalue()[:-30]))
    torch.testing.assert_close(
        found["inputs"][0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    )
    assert torch.equal(again["scores"], found["scores"])
    assert told["values"].tolist() == [48, 48]


class Deciding(nn.Module):
    """Asks the data which way to go, so that it has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = x * 2
        return self.last(x.flatten(1)).argmax(1)


async def test_a_decision_of_a_file_without_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Deciding().eval()).save(str(path))
        archive = torch.jit.load(str(path))
    x = torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1))
    manifest = {"shape": SHAPE, "bounds": (0, 1), "labels": tuple("abcde")}
    async with serving() as worker:
        info = await worker.load("net", path, Manifest.model_validate(manifest))
        path.unlink()  # it stays open
        found = await ask(worker, "_original", to_array(x))
    assert (info.form, info.logits_from) == ("archive", "classes")
    decided = torch.cat([archive(row[None]) for row in x])
    assert torch.equal(found["classes"], decided)
    assert torch.equal(found["scores"].argmax(1), decided)
    assert torch.equal(found["scores"].sum(1), torch.ones(ROWS))


class Words(nn.Module):
    """Tokens to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens).mean(1))


async def test_tokens_reach_the_file_as_they_were_sent(tmp_path: Path) -> None:
    path, net = tmp_path / "model.pt", Words().eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5], [8, 7, 6, 5, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, tokens).save(str(path))
        archive = torch.jit.load(str(path))
    manifest = Manifest.model_validate({"shape": [5], "dtype": "int64", "kind": "tokens"})
    async with serving() as worker:
        await worker.load("net", path, manifest)
        found = await ask(worker, "_original", to_array(tokens))
    with torch.no_grad():
        assert torch.equal(found["scores"], archive(tokens))
        assert torch.equal(found["inputs"], net.table(tokens))


async def test_a_file_that_is_gone_or_another_one_is_refused(tmp_path: Path) -> None:
    path, _ = saved("logits", "pt", tmp_path)
    kept = shutil.copy(path, tmp_path / "kept.pt")
    inputs = Array("float32", (1, *SHAPE), bytes(4 * 48))
    async with serving() as worker:
        await worker.load("net", path, Manifest.model_validate(IMAGE))
        path.write_bytes(b"another")
        with pytest.raises(FailedPrecondition, match="changed since it was loaded"):
            await ask(worker, "_original", inputs)
        path.unlink()
        with pytest.raises(FailedPrecondition, match="no longer there"):
            await ask(worker, "_original", inputs)
        shutil.copy(kept, path)
        assert (await ask(worker, "_original", inputs))["scores"].shape == (1, 5)
        path.unlink()  # it stays open
        assert (await ask(worker, "_original", inputs))["scores"].shape == (1, 5)


async def test_a_network_without_a_file_has_no_answers() -> None:
    async with serving() as worker:
        worker.add("net", classifier(nn.Flatten(), (4,)))
        with pytest.raises(FailedPrecondition, match="nothing here runs the file of"):
            await ask(worker, "_original", Array("float32", (1, 4), bytes(16)))

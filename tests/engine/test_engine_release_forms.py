"""Every form of a model gives its weights, sessions and files back, without the collector."""

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from engine_fakes import array, calling, result, until
from torch import Tensor, nn

from interpret_server.engine.local import LocalWorker
from interpret_server.engine.release import modules_of
from interpret_server.errors import InterpretError
from interpret_server.models import onnx_source
from interpret_server.models.classifier import Classifier
from interpret_server.models.lowered import Unlowerable
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

ROW = torch.linspace(0, 1, 48).reshape(1, 3, 4, 4)
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn about themselves


class Net(nn.Module):
    """A branch that depends on the data has no graph form."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc, self.branches = nn.Linear(64, 2), branches

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        if self.branches and bool(x.sum() > 1e9):
            x = x * 2
        return self.fc(x.flatten(1))


def trace(path: Path) -> None:
    torch.jit.save(torch.jit.trace(Net().eval(), ROW), str(path))


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(Net(branches=True).eval()), str(path))


def external(path: Path) -> None:
    torch.onnx.export(
        Net().eval(),
        (ROW,),
        str(path),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )


def program(path: Path) -> None:
    rows = {0: torch.export.Dim("n")}
    example = ROW.expand(2, -1, -1, -1).contiguous()
    torch.export.save(
        torch.export.export(Net().eval(), (example,), dynamic_shapes=(rows,)), str(path)
    )


FILES = {
    "graph of an archive": ("model.pt", trace, "graph"),
    "archive": ("model.pt", script, "archive"),
    "graph of an ONNX file": ("model.onnx", external, "graph"),
    "runtime": ("model.onnx", external, "runtime"),
    "program": ("model.pt2", program, "graph"),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held(model: Classifier) -> list[weakref.ref[object]]:
    """The classifier, its tensors and its sessions."""
    found: list[weakref.ref[object]] = [weakref.ref(model)]
    for module in modules_of(model):
        values = (*module._parameters.values(), *module._buffers.values())
        found += [weakref.ref(item) for item in values if item is not None]
        if (session := vars(module).get("session")) is not None:
            found.append(weakref.ref(session))
    return found


def opened(folder: Path) -> list[str]:
    """What the process has open or mapped below a folder."""
    descriptors = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    links = [os.readlink(item) for item in descriptors if item.is_symlink()]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [item for item in (*links, *maps) if str(folder) in item]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", FILES)
async def test_everything_of_a_model_goes_with_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, save, form = FILES[kind]
    if form == "runtime":

        def no_graph(*args: object) -> None:
            raise Unlowerable("no graph today")

        monkeypatch.setattr(onnx_source.OnnxSource, "_import", no_graph)
    save(tmp_path / file)
    worker = LocalWorker(Registry.installed(), device="cpu")
    manifest = Manifest.model_validate({"shape": [3, 4, 4], "bounds": [0, 1]})
    info = await worker.load("a", tmp_path / file, manifest)
    assert info.form == form
    references = held(worker._served["a"].classifier)
    assert len(references) > 1
    for plugin in ("_predict", "saliency", "guided_backprop"):
        try:
            await result(worker, calling(plugin, array(ROW.tolist()), model="a"))
        except InterpretError:
            assert form != "graph"
    await worker.unload("a")
    await until(lambda: not any(item() is not None for item in references))
    if sys.platform.startswith("linux"):
        assert opened(tmp_path) == []
    await worker.close()

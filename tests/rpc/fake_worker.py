"""A worker without torch, whose plugins do what their names say."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from interpret_server.engine import api
from interpret_server.errors import (
    InvalidRequest,
    ModelRejected,
    NotFound,
    Overloaded,
    Unavailable,
    Violation,
)
from interpret_server.models.manifest import Manifest

INFO = api.ModelInfo(
    name="net",
    version="3",
    format="onnx",
    form="graph",
    form_reason="every operator has an equal",
    sha256="ab" * 32,
    size=123,
    device="cpu",
    precision="float32",
    input_name="image",
    output_name="scores",
    input_shape=(2,),
    input_dtype="float32",
    input_layout="other",
    bounds=(0.0, 1.0),
    classes=2,
    labels=("cat", "dog"),
    logits_from="softmax",
    layers=(api.LayerInfo("relu", "relu", (2,)),),
    capabilities=frozenset({"gradient", "bounds"}),
    lacking={"rectifiers": "net has no rectifier"},
    verification=api.Verification("onnxruntime", 1e-7, 1e-8, (1, 3), 16),
    notes=("a note",),
    manifest=Manifest(labels=("cat", "dog")),
    max_batch=8,
    inputs=(api.InputInfo("image", "values", (2,), "float32", bounds=(0.0, 1.0)),),
    explained_shape=(2,),
)
PLUGINS = tuple(
    api.PluginInfo(
        name=name,
        kind="attribution" if name == "echo" else "synthesis",
        api=1,
        version="1.2",
        distribution="tests",
        summary="A summary.",
        description="A summary.\n\nAnd more.",
        requires=frozenset({"gradient"}),
        rows="independent",
        inputs="required",
        target_kinds=frozenset({"class", "channel"}),
        schema={"type": "object", "properties": {"steps": {"minimum": 1}}},
        fields=(api.ResultField("attributions", "tensor", "What mattered."),),
        tensors=(api.AuxInfo("mask", "Where.", True, False),),
    )
    for name in ("_predict", "broken", "echo", "endless", "flood", "overloaded", "unvarnished")
)
PREDICTION = api.Prediction((1, 0), (0.75, 0.25), (1.0, 0.0), ("dog", "cat"))
LOGITS = struct.pack("<4f", 0, 1, 0, 1)
SECRET = "/private/place/model.py"


def result(call: api.Call, tensors: dict[str, api.Array]) -> api.Result:
    return api.Result(
        tensors=tensors,
        metrics={"loss": (0.5, 1.5)},
        before=(PREDICTION, PREDICTION),
        after=(PREDICTION,),
        warnings=(api.RowWarning("the gradient is zero", (1,)),),
        pictures={"attributions": (b"png 0", b"png 1")} if call.render else {},
        provenance=api.Provenance(
            model=call.model,
            model_sha256=INFO.sha256,
            model_version=INFO.version,
            plugin=call.plugin,
            plugin_version="1.2",
            server_version="0",
            params=call.params,
            targets=call.targets,
            seeds=call.seeds,
            device="cpu",
            precision="float32",
            queue_seconds=0.25,
            run_seconds=0.5,
            batch_rows=2,
        ),
    )


class FakeWorker:
    """Keeps what it was asked in `calls` and `loaded`; `ended` is set when a call is closed."""

    def __init__(self) -> None:
        self.calls: list[api.Call] = []
        self.loaded: list[tuple[str, bytes, Manifest, Path]] = []
        self.started, self.ended = threading.Event(), threading.Event()
        self.closed_with: float | None = None
        self._models = {"net": INFO}

    def plugins(self) -> tuple[api.PluginInfo, ...]:
        return PLUGINS

    def models(self) -> tuple[api.ModelInfo, ...]:
        return tuple(self._models.values())

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> api.ModelInfo:
        data = await asyncio.to_thread(path.read_bytes)
        self.loaded.append((name, data, manifest, path))
        if data.startswith(b"rejected"):
            raise ModelRejected("the file's outputs are not logits")
        self._models[name] = _named(name, manifest)
        return self._models[name]

    async def unload(self, name: str) -> None:
        del self._models[name]

    async def keep(self, name: str, folder: Path) -> api.StoredModel:
        return api.StoredModel(folder / name, self._models[name].manifest, INFO.sha256)

    async def run(self, call: api.Call) -> AsyncIterator[api.Event]:
        self.calls.append(call)
        if self.closed_with is not None:
            raise Unavailable("the server is shutting down; try another one")
        if call.model not in self._models:
            raise NotFound(f"no model {call.model!r} is loaded")
        try:
            async for event in self._events(call):
                yield event
        finally:
            self.ended.set()

    async def _events(self, call: api.Call) -> AsyncIterator[api.Event]:
        if call.plugin == "mute":
            yield result(call, {})
            return
        if call.plugin == "drawn":
            pictures = {"images": (b"1" * 100_000, b"2"), "masks": (b"small",)}
            yield replace(result(call, {}), pictures=pictures)
            return
        assert isinstance(call.inputs, api.Array)
        match call.plugin:
            case "echo":
                yield api.Progress(1, 2)
                if call.previews:
                    yield api.Preview(1, 2, {"images": call.inputs}, {"images": (b"png",)})
                yield result(call, {"attributions": call.inputs, **call.tensors})
            case "_predict":
                logits = api.Array("float32", (2, 2), memoryview(LOGITS))
                yield result(call, {"logits": logits, "probabilities": logits})
            case "_gradient":
                cotangent = call.tensors["grad_outputs"]
                if cotangent.shape != (2, 2):
                    raise InvalidRequest.field("tensors.grad_outputs", "the shape is wrong")
                yield result(call, {"gradient": call.inputs, "logits": cotangent})
            case "_activations":
                yield result(call, {"relu": call.inputs})
            case "endless":
                self.started.set()
                yield api.Progress(0, 1000)
                await asyncio.Event().wait()
            case "flood":
                for step in range(2000):
                    yield api.Preview(step, 2000, {"images": call.inputs})
                yield result(call, {"images": call.inputs})
            case "overloaded":
                raise Overloaded("64 calls are waiting; try again later", retry_after=1.5)
            case "broken":
                raise RuntimeError(f"no such file: {SECRET}")
            case "unvarnished":
                raise InvalidRequest("x" * 100_000, violations=_many_violations())
            case _:
                raise NotFound(f"there is no plugin {call.plugin!r}")

    async def close(self, grace: float = 5.0) -> None:
        self.closed_with = grace


def _named(name: str, manifest: Manifest) -> api.ModelInfo:
    return replace(INFO, name=name, manifest=manifest, version=manifest.version)


def _many_violations() -> list[Violation]:
    return [Violation(f"params.field_{i}", "is wrong " * 20) for i in range(1000)]

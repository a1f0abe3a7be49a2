"""The line between the front end and the workers: plain values, no torch, no protobuf.

The front end (`rpc/`) builds a `Call` and reads `Event`s; a worker holds models and plugins. A
worker may live in this process or in another one behind the same interface.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from interpret_pictures.options import Rendering

from ..models.manifest import Manifest

MAX_ROWS = 16_384  # of one call

ITEM_SIZES: Mapping[str, int] = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class Array:
    """A tensor outside torch: little-endian bytes in C order.

    Args:
        dtype: a key of `ITEM_SIZES`.
        shape: all axes.
        data: exactly `product(shape) * ITEM_SIZES[dtype]` bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True)
class Target:
    """One target, as a caller writes it; see `interpret_server.models.targets.TargetKind`.

    Args:
        kind: `class`, `neuron`, `channel`, `layer` or `direction`.
        index: class or channel (one number), neuron (one number per axis of the layer).
        layer: None means the logits.
        direction: float values of one row, shape `(C,)` or the layer's.
    """

    kind: str
    index: tuple[int, ...] = ()
    layer: str | None = None
    direction: Array | None = None


@dataclass(frozen=True)
class Call:
    """A request to run a plugin on a model.

    Args:
        model: name of a loaded model.
        plugin: name of a plugin; a name starting with `_` is one of the engine's primitives.
        params: JSON text of the parameters.
        inputs: `(N, *input_shape)`; or encoded images (JPEG, PNG), one per row; or, for a model of
            several inputs, one array for each by name; or None.
        targets: none (predicted class, where there are inputs), one for all rows, or one per row.
        seeds: none (drawn by the engine and reported), one (row i gets seed + i), or one per row.
        tensors: auxiliary tensors by name, one row per input row.
        models: role -> name of a loaded model, for the second models that the plugin declares.
        render: how to draw the result as PNG; None for not at all.
        half: send floating-point result tensors as float16.
        previews: send previews.
        progress: send progress; without it a step wakes nobody.
        timeout: seconds the caller will wait; None for no limit.
        client: who calls, for fair shares; empty for nobody in particular.
        priority: -1 (batch work), 0 or 1 (somebody waits); a higher one goes first.
        alone: run as exactly this batch, by deterministic kernels: not with other callers' rows,
            and cut by nothing but the model's `max_batch` and the memory. The same call then gives
            the same bits whatever else is served; other calls may run between its steps.
    """

    model: str
    plugin: str
    params: str = "{}"
    inputs: Array | tuple[bytes, ...] | Mapping[str, Array] | None = None
    targets: tuple[Target, ...] = ()
    seeds: tuple[int, ...] = ()
    tensors: Mapping[str, Array] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    render: Rendering | None = None
    half: bool = False
    previews: bool = False
    progress: bool = True
    timeout: float | None = None
    client: str = ""
    priority: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps."""

    done: int
    total: int


@dataclass(frozen=True)
class Preview:
    """Intermediate tensors after `done` steps; drawn as PNG where the call asked for rendering."""

    done: int
    total: int
    tensors: Mapping[str, Array]
    pictures: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """One row's classes, most probable first, at most five."""

    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowWarning:
    """A sentence about some rows of a result."""

    message: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SecondModel:
    """A model that a call named in a role of its plugin, and which file that was."""

    role: str
    model: str
    model_sha256: str
    model_version: str


@dataclass(frozen=True)
class Provenance:
    """Enough to repeat a call.

    Args:
        model, model_sha256, model_version: which file answered.
        plugin, plugin_version: which plugin.
        server_version: which server.
        params: JSON text with every default filled in.
        targets: what each row aimed at (the predicted class, where the call named none).
        seeds: one per row.
        device, precision: where and in which floating-point type.
        queue_seconds, run_seconds: waiting and running.
        batch_rows: rows of the batch in which the call ran, its own included.
        models: the second models, by role.
    """

    model: str
    model_sha256: str
    model_version: str
    plugin: str
    plugin_version: str
    server_version: str
    params: str
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    device: str
    precision: str
    queue_seconds: float
    run_seconds: float
    batch_rows: int
    models: tuple[SecondModel, ...] = ()


@dataclass(frozen=True)
class Result:
    """A finished call: named tensors, per-row metrics, predictions and provenance."""

    tensors: Mapping[str, Array]
    metrics: Mapping[str, tuple[float, ...]]
    before: tuple[Prediction, ...]
    after: tuple[Prediction, ...]
    warnings: tuple[RowWarning, ...]
    pictures: Mapping[str, tuple[bytes, ...]]
    provenance: Provenance


Event = Progress | Preview | Result


@dataclass(frozen=True)
class LayerInfo:
    """A layer's name, kind and row shape."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InputInfo:
    """An input that callers send.

    Args:
        name: the file's.
        kind: `values`, `tokens` (looked up in an embedding) or `integers` (a mask, lengths).
        shape: of one row; -1 where a size is free.
        dtype: `float32`, `float64` or `int64`.
        layout: `CHW`, `HWC`, `CL` or `other`.
        bounds: smallest and largest value, or None.
        limit: tokens lie in [0, limit); None where it is not known.
        integers: whether callers may send integers.
        features: names of the values of one row, or none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "other"
    bounds: tuple[float, float] | None = None
    limit: int | None = None
    integers: bool = False
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """How a loaded model was checked against its file.

    Args:
        reference: what executed the original (`torch.jit`, `onnxruntime`, ...).
        max_difference: largest |ours - reference| over all logits checked.
        relative_difference: the same over the largest |reference|.
        batch_sizes: which were tried.
        inputs: how many rows in all.
    """

    reference: str
    max_difference: float
    relative_difference: float
    batch_sizes: tuple[int, ...]
    inputs: int


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model; `form` is `graph`, `archive` or `runtime`.

    `inputs` are what callers send, and `input_*` describe the first of them; `explained_shape` is
    the row shape of what plugins explain and change: embeddings for tokens, all values of several
    inputs in one axis. Sizes are -1 where they are free. `files` are the names of the files beside
    its own that it needs.
    """

    name: str
    version: str
    format: str
    form: str
    form_reason: str
    sha256: str
    size: int
    device: str
    precision: str
    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    input_dtype: str
    input_layout: str
    bounds: tuple[float, float] | None
    classes: int
    labels: tuple[str, ...]
    logits_from: str  # `logits`, `softmax`, `log_softmax`, `sigmoid`, `probabilities`, ...
    layers: tuple[LayerInfo, ...]
    capabilities: frozenset[str]
    lacking: Mapping[str, str]
    verification: Verification
    notes: tuple[str, ...]
    manifest: Manifest
    max_batch: int
    inputs: tuple[InputInfo, ...] = ()
    explained_shape: tuple[int, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredModel:
    """Copies of a model's files, from which `Worker.load` makes the same model again.

    Args:
        path: of the model's file.
        manifest: with which it was loaded.
        sha256: of the file.
        samples: real inputs that it was verified with, or None.
    """

    path: Path
    manifest: Manifest
    sha256: str
    samples: Path | None = None


@dataclass(frozen=True)
class ResultField:
    """A field of a plugin's result; `role` is a value of `interpret_server.plugin.Role`."""

    name: str
    role: str
    description: str


@dataclass(frozen=True)
class AuxInfo:
    """An auxiliary tensor that a plugin accepts."""

    name: str
    description: str
    like_input: bool
    required: bool


@dataclass(frozen=True)
class ModelRoleInfo:
    """A second model that a request may name; see `interpret_server.plugin.ModelRole`."""

    name: str
    description: str
    requires: frozenset[str]
    required: bool
    same_inputs: bool
    output: str


@dataclass(frozen=True)
class PluginInfo:
    """What is known of a plugin."""

    name: str
    kind: str
    api: int
    version: str
    distribution: str
    summary: str  # first line of the docstring
    description: str  # the whole docstring
    requires: frozenset[str]
    rows: str
    inputs: str
    target_kinds: frozenset[str]
    schema: Mapping[str, Any]
    fields: tuple[ResultField, ...]
    tensors: tuple[AuxInfo, ...]
    models: tuple[ModelRoleInfo, ...] = ()


class Worker(Protocol):
    """Holds models and plugins and runs calls. Every method raises `InterpretError`s only."""

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin, by name."""
        ...

    def models(self) -> tuple[ModelInfo, ...]:
        """Every loaded model, by name."""
        ...

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> ModelInfo:
        """Load a file under a name; a failed replacement keeps the old model serving.

        Args:
            samples: a file of real inputs to verify the model with.

        Raises:
            InvalidModel, ModelRejected, InvalidRequest, AlreadyExists.
        """
        ...

    async def unload(self, name: str) -> None:
        """Forget a model once the calls that run on it are done. Raises NotFound."""
        ...

    async def keep(self, name: str, folder: Path) -> StoredModel:
        """Copy a model's files into a new folder, which appears at once and whole.

        The same model can be loaded from there when its own files are gone. `engine.stored` reads
        the folder again.

        Raises:
            NotFound: no model of that name is loaded.
            AlreadyExists: there is such a folder.
            FailedPrecondition: a file is gone or has changed, or the copy cannot be written.
        """
        ...

    def run(self, call: Call) -> AsyncIterator[Event]:
        """Progress* and Preview* in order, then exactly one Result; or raises.

        Closing the iterator cancels the call. A reader that lags loses progress, never the result.

        Raises:
            NotFound, InvalidRequest, FailedPrecondition, Overloaded, Cancelled, DeadlineExceeded.
        """
        ...

    async def close(self, grace: float = 5.0) -> None:
        """Refuse new calls, let running ones finish for `grace` seconds, then cancel them."""
        ...

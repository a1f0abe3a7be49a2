"""The line between the front end and the workers: plain values, no torch, no protobuf.

The front end (`rpc/`) builds a `Call` and reads `Event`s; a worker holds models and plugins. A
worker may live in this process or in another one behind the same interface.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from interpret_pictures.options import Rendering

from ..models.manifest import Manifest
from .infos import AuxInfo as AuxInfo
from .infos import InputInfo as InputInfo
from .infos import LayerInfo as LayerInfo
from .infos import ModelInfo as ModelInfo
from .infos import ModelRoleInfo as ModelRoleInfo
from .infos import PluginInfo as PluginInfo
from .infos import ResultField as ResultField
from .infos import StoredModel as StoredModel
from .infos import Verification as Verification

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

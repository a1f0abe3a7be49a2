"""What the client's methods return: plain values and numpy arrays, no protobuf."""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .descriptions import (
    AuxTensor,
    Layer,
    ModelInfo,
    ModelInput,
    ModelRole,
    PluginInfo,
    ResultField,
    Verification,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from interpret_pictures.options import Choice

__all__ = [
    "Array",
    "AuxTensor",
    "DataSet",
    "Event",
    "Gradient",
    "Layer",
    "ModelInfo",
    "ModelInput",
    "ModelRole",
    "PluginInfo",
    "Prediction",
    "Predictions",
    "Preview",
    "Progress",
    "Provenance",
    "Result",
    "ResultField",
    "RowWarning",
    "SecondModel",
    "Target",
    "Verification",
    "plain",
]

Array = NDArray[Any]
Target = int | Mapping[str, Any]


@dataclass(frozen=True)
class DataSet:
    """Rows of a data set on the server, in place of inputs.

    Args:
        name: path below the server's data root; the ending may be left out.
        rows: a slice (`slice(0, 1000)`), the number of one row or those of several; None for all.
    """

    name: str
    rows: slice | int | Sequence[int] | None = None


@dataclass(frozen=True)
class Prediction:
    """One row's classes, most probable first, at most five; `labels` where the model has them."""

    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answers to N rows.

    Args:
        logits: `(N, K)`.
        probabilities: `(N, K)`, in [0, 1].
        rows: the most probable classes of every row.
    """

    logits: Array
    probabilities: Array
    rows: tuple[Prediction, ...]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The most probable class of every row, `(N,)`."""
        return np.asarray([row.classes[0] for row in self.rows], dtype=np.int64)

    @property
    def labels(self) -> tuple[str, ...]:
        """The most probable class's name of every row; empty where the model has no names."""
        return tuple(row.labels[0] for row in self.rows if row.labels)


@dataclass(frozen=True, eq=False)
class Gradient:
    """A vector-Jacobian product.

    Args:
        gradient: `(N, *explained_shape)`: of `sum(grad_outputs * logits)` by the inputs; None for
            a model of several inputs that can change.
        logits: `(N, K)`.
        gradients: the same by the input's name, for a model of several inputs that can change.
    """

    gradient: Array | None
    logits: Array
    gradients: Mapping[str, Array] = field(default_factory=dict)


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


@dataclass(frozen=True, eq=False)
class Provenance:
    """Enough to repeat a call: pass `params`, `targets` and `seeds` on as they are.

    Args:
        params: with every default filled in.
        targets: one per row, in the form that `run` takes.
        seeds: one per row.
        queue_seconds: time spent waiting.
        run_seconds: time spent running.
        batch_rows: rows of the batch in which the call ran, its own included.
        models: the second models that the call named.
    """

    model: str
    model_sha256: str
    model_version: str
    plugin: str
    plugin_version: str
    server_version: str
    params: Mapping[str, Any]
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    device: str
    precision: str
    queue_seconds: float
    run_seconds: float
    batch_rows: int
    models: tuple[SecondModel, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A plugin's result for N rows.

    Args:
        tensors: name -> `(N, ...)`, or of any shape where it is about all rows.
        metrics: name -> one number per row, `(N,)` float64.
        before: predictions of the inputs as given, where the plugin computes them.
        after: predictions of the inputs that the plugin made.
        warnings: sentences about some rows.
        pictures: name -> one PNG file per row, or one of all rows; empty unless asked for.
        provenance: enough to repeat the call.
    """

    tensors: Mapping[str, Array]
    metrics: Mapping[str, NDArray[np.float64]]
    before: tuple[Prediction, ...]
    after: tuple[Prediction, ...]
    warnings: tuple[RowWarning, ...]
    pictures: Mapping[str, tuple[bytes, ...]]
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything but the tensors' values and the pictures, ready for `json.dumps`."""
        summary: dict[str, Any] = plain(
            {
                "metrics": self.metrics,
                "before": self.before,
                "after": self.after,
                "warnings": self.warnings,
                "tensors": {
                    name: {"dtype": tensor.dtype.name, "shape": tensor.shape}
                    for name, tensor in self.tensors.items()
                },
                "provenance": self.provenance,
            }
        )
        return summary

    def picture(
        self,
        style: "Choice" = True,
        *,
        row: int = 0,
        inputs: Any = None,
        layout: str | None = None,
        bounds: tuple[float, float] | None = None,
        name: str = "attributions",
        names: Sequence[str] = (),
    ) -> "Image":
        """Draw one row's attribution here, as the server would: a Pillow image.

        A warning is issued where the style asks for something that is not there.

        Args:
            style: one style, or options with one, as `render` of `run`; the mask of `object_mask`.
            row: which.
            inputs: all rows as they were given to `run`, for overlays and masks.
            layout: of a row: `CHW`, `HWC`, `CL`, `tokens` or `other`, as `ModelInput` tells it;
                None to tell it by the shape.
            bounds: of the inputs, as `ModelInfo` tells them; None for the row's own smallest and
                largest value.
            name: of the tensor.
            names: of the row's tokens or features.

        Raises:
            InvalidRequest: an option is wrong.
        """
        from ._rendering import draw_row

        return draw_row(self.tensors[name], style, row, inputs, layout, bounds, names)

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> tuple[Path, ...]:
        """Write `tensors.npz`, `result.json` and one PNG per picture (`attributions-0.png`,
        `attributions.overlay-0.png`, ...).

        Args:
            directory: made where it does not exist.
            overwrite: replace files of those names.

        Returns:
            The files that were written.

        Raises:
            FileExistsError: a file of that name is there; nothing is written then.
        """
        files = {
            "tensors.npz": _npz(self.tensors),
            "result.json": (json.dumps(self.summary(), indent=2) + "\n").encode(),
        }
        for name, pictures in self.pictures.items():
            files |= {f"{_safe(name)}-{row}.png": png for row, png in enumerate(pictures)}
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            if not overwrite and (folder / name).exists():
                raise FileExistsError(
                    f"{folder / name} exists; choose another folder or allow overwriting"
                )
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return tuple(folder / name for name in files)


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps."""

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Preview:
    """Intermediate tensors `(N, ...)` after `done` steps, drawn where rendering was asked for."""

    done: int
    total: int
    tensors: Mapping[str, Array]
    pictures: Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True, eq=False)
class Event:
    """One event of a stream: exactly one of the three is not None."""

    progress: Progress | None = None
    preview: Preview | None = None
    result: Result | None = None


def plain(value: Any) -> Any:
    """`value` with dataclasses, arrays, sets and tuples as what JSON has."""
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _npz(tensors: Mapping[str, Array]) -> bytes:
    # numpy.savez takes the names as keyword arguments, where one called `file` would collide.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, tensor in tensors.items():
            with archive.open(f"{_safe(name)}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, tensor, allow_pickle=False)
    return buffer.getvalue()

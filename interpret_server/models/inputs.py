"""What a model's input is: the manifest's word, and the file's where the manifest is silent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import InvalidRequest, ModelRejected
from .classifier import Bounds, Normalise
from .manifest import InputSpec, Manifest

_CHANNELS = (1, 3)
_MOST_ROWS = 1024


@dataclass(frozen=True)
class FileInput:
    """An input as the file declares it.

    Args:
        name: its name in the file.
        shape: with the batch axis; None for a free size; None where the file does not tell.
        dtype: None where the file does not tell.
    """

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class ResolvedInput:
    """The input that a model is served with.

    Args:
        name: its name in the file.
        shape: of one row.
        layout: `CHW`, `HWC`, `CL` or `other`.
        dtype: of the classifier: float32 or float64.
        bounds: smallest and largest value, or None.
        mean: broadcastable to a row, in units of the bounds, or None.
        std: broadcastable to a row, in units of the bounds, or None.
        fixed_batch: the only batch size that the file declares, or None.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = "other"
    dtype: torch.dtype = torch.float32
    bounds: Bounds | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    fixed_batch: int | None = None
    notes: list[str] = field(default_factory=list)

    def normalise(self) -> nn.Module:
        """From the caller's units to the file's."""
        if self.mean is None and self.std is None:
            return nn.Identity()
        zero, one = torch.zeros((), dtype=self.dtype), torch.ones((), dtype=self.dtype)
        return Normalise(
            zero if self.mean is None else self.mean, one if self.std is None else self.std
        )

    def probes(self) -> tuple[Tensor, Tensor]:
        """Five rows and two rows to try a model with: random ones, all lower, all upper.

        The second and third of the five rows are the boundary. Without bounds, normal noise of
        the manifest's mean and standard deviation, with three deviations as the boundary.
        """
        noise = torch.Generator().manual_seed(0)
        lower: Tensor | float
        upper: Tensor | float
        if self.bounds is not None:
            lower, upper = self.bounds
            values = torch.rand(7, *self.shape, generator=noise, dtype=self.dtype)
            values = values * (upper - lower) + lower
        else:
            mean, std = self.normalise_parameters()
            values = torch.randn(7, *self.shape, generator=noise, dtype=self.dtype) * std + mean
            lower, upper = mean - 3 * std, mean + 3 * std
        values[1], values[2] = lower, upper
        return values[:5], values[5:]

    def normalise_parameters(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, 0 and 1 where the manifest states none."""
        mean = torch.zeros((), dtype=self.dtype) if self.mean is None else self.mean
        std = torch.ones((), dtype=self.dtype) if self.std is None else self.std
        return mean, std


def resolve_input(manifest: Manifest, declared: Sequence[FileInput]) -> ResolvedInput:
    """Unite the manifest's input with the file's.

    Raises:
        InvalidRequest: naming the manifest's field that is missing, or that contradicts the file.
        ModelRejected: the model has several inputs, or one that is not floating point.
    """
    if len(declared) != 1 or len(manifest.inputs) > 1:
        names = ", ".join(item.name for item in declared) or "none"
        raise ModelRejected(
            f"models of one input are served; this one has {len(declared)} ({names}), and the "
            f"manifest lists {len(manifest.inputs)}"
        )
    (told,), spec = declared, manifest.input
    if told.shape is not None and spec.name is not None and spec.name != told.name:
        raise _wrong("name", f"the file's input is {told.name!r}")
    if told.dtype is not None and not told.dtype.is_floating_point:
        raise ModelRejected(
            f"the input {told.name!r} takes {_name(told.dtype)} values; only floating-point "
            "inputs are served"
        )
    fixed_batch = told.shape[0] if told.shape else None
    if fixed_batch and fixed_batch > _MOST_ROWS:
        raise ModelRejected(
            f"the file takes {fixed_batch} rows at a time; at most {_MOST_ROWS} are served"
        )
    shape = _shape(spec, told)
    layout = spec.layout or _layout(shape)
    if len(shape) != {"CHW": 3, "HWC": 3, "CL": 2}.get(layout, len(shape)):
        raise _wrong("layout", f"{layout} does not fit a row of shape {list(shape)}")
    dtype = torch.float64 if told.dtype is torch.float64 else torch.float32
    notes = []
    if spec.dtype in ("uint8", "int64"):
        notes.append(
            f"The manifest says that callers send {spec.dtype}; the model is served with "
            f"{_name(dtype)} inputs in its bounds."
        )
    return ResolvedInput(
        name=spec.name or told.name,
        shape=shape,
        layout=layout,
        dtype=dtype,
        bounds=None if spec.bounds is None else Bounds(*spec.bounds),
        mean=_per_channel("mean", spec.mean, shape, layout, dtype),
        std=_per_channel("std", spec.std, shape, layout, dtype),
        fixed_batch=fixed_batch or None,
        notes=notes,
    )


def _wrong(name: str, description: str) -> InvalidRequest:
    return InvalidRequest.field(f"manifest.inputs[0].{name}", description)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(spec: InputSpec, told: FileInput) -> tuple[int, ...]:
    known = told.shape[1:] if told.shape is not None else None
    stated = spec.shape
    if stated is None and known is None:
        raise _wrong(
            "shape",
            "the file does not tell the shape of its input; give that of one row, without the "
            "batch axis, such as [3, 224, 224]",
        )
    if stated is None or known is None:
        shape = stated if stated is not None else known
    else:
        fits = len(stated) == len(known) and all(
            None in (a, b) or a == b for a, b in zip(stated, known, strict=True)
        )
        if not fits:
            raise _wrong("shape", f"the file's input takes {_sizes(known)}, not {_sizes(stated)}")
        shape = tuple(b if a is None else a for a, b in zip(stated, known, strict=True))
    sizes = tuple(size for size in shape or () if size is not None)
    if shape is None or len(sizes) != len(shape):
        raise _wrong(
            "shape", f"every size must be given; {_sizes(shape or ())} leaves some of them free"
        )
    if math.prod(sizes) > 1 << 28:
        raise _wrong("shape", f"{_sizes(sizes)} is too large for one row")
    return sizes


def _sizes(shape: Sequence[int | None]) -> str:
    return str(["free" if size is None else size for size in shape]).replace("'", "")


def _layout(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return "CHW"
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return "HWC"
    return "CL" if len(shape) == 2 else "other"


def _per_channel(
    name: str,
    values: tuple[float, ...] | float | None,
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
) -> Tensor | None:
    if values is None:
        return None
    tensor = torch.tensor(values, dtype=dtype)
    if tensor.dim() == 0 or len(tensor) == 1:
        return tensor.reshape(())
    axis = {"CHW": 0, "CL": 0, "HWC": 2}.get(layout, 0 if len(shape) == 1 else None)
    if axis is None:
        raise _wrong("layout", f"needed to tell which axis of {list(shape)} the {name} is for")
    if len(tensor) != shape[axis]:
        raise _wrong(name, f"{len(tensor)} values for {shape[axis]} channels")
    return tensor.reshape([-1 if position == axis else 1 for position in range(len(shape))])

"""What a model's input is: the manifest's word, and the file's where the manifest is silent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field

import torch
from torch import Tensor, nn

from ..errors import InvalidRequest, ModelRejected
from .classifier import Bounds
from .manifest import InputKind, InputSpec, Manifest
from .network import Normalise

_CHANNELS = (1, 3)
_MOST_ROWS = 1024
# What the inputs of common text models hold for a text without padding or segments.
_DEFAULTS = {
    "attention_mask": 1.0,
    "input_mask": 1.0,
    "token_type_ids": 0.0,
    "segment_ids": 0.0,
}


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
    """An input that a model is served with.

    Args:
        name: its name in the file.
        shape: of one row; of an example where sizes are free.
        layout: `CHW`, `HWC`, `CL` or `other`.
        dtype: of the classifier: float32 or float64; int64 for an integer input.
        bounds: smallest and largest value, or None.
        mean: broadcastable to a row, in units of the bounds, or None.
        std: broadcastable to a row, in units of the bounds, or None.
        fixed_batch: the only batch size that the file declares, or None.
        sizes: of one row, None where free; empty where none is.
        file_dtype: that the file takes; None for the classifier's.
        kind: None where the file has yet to tell.
        embedding: the layer that looks up tokens, where the manifest names it.
        default: fills the whole input, which callers then do not send.
        sent_integers: whether callers send integers, where the manifest says; else None.
        field: where the manifest states it.
        features: names of the values of a row, or none.
        samples: five rows and two rows to use as probes instead of random ones.
        notes: one sentence each.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = "other"
    dtype: torch.dtype = torch.float32
    bounds: Bounds | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    fixed_batch: int | None = None
    sizes: tuple[int | None, ...] = ()
    file_dtype: torch.dtype | None = None
    kind: InputKind | None = InputKind.VALUES
    embedding: str | None = None
    default: float | None = None
    sent_integers: bool | None = None
    field: str = "manifest.inputs[0]"
    features: tuple[str, ...] = ()
    samples: tuple[Tensor, Tensor] | None = None
    notes: list[str] = dataclass_field(default_factory=list)

    @property
    def free_axes(self) -> tuple[int, ...]:
        """The axes of a row whose sizes are free."""
        return tuple(axis for axis, size in enumerate(self.sizes) if size is None)

    @property
    def integral(self) -> bool:
        """Whether the file takes integers or truth values."""
        return self.file_dtype is not None and not self.file_dtype.is_floating_point

    def of_size(self, size: int) -> "ResolvedInput":
        """The same with every free size set, as an example."""
        shape = tuple(size if known is None else known for known in self.sizes or self.shape)
        return replace(self, shape=shape)

    def fixed(self) -> "ResolvedInput":
        """The same with the example's sizes as the only ones."""
        return replace(self, sizes=())

    def normalise(self) -> nn.Module:
        """From the caller's units to the file's."""
        if self.mean is None and self.std is None:
            return nn.Identity()
        zero, one = torch.zeros((), dtype=self.dtype), torch.ones((), dtype=self.dtype)
        return Normalise(
            zero if self.mean is None else self.mean, one if self.std is None else self.std
        )

    def probes(self, limit: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Five rows and two rows to try a model with: random ones, all lower, all upper.

        The second and third of the five rows are the boundary. Without bounds, normal noise of
        the manifest's mean and standard deviation, with three deviations as the boundary.

        Args:
            limit: integers lie in [0, limit) where the manifest states no bounds.
            seed: of the noise; inputs that are tried together differ by it.
        """
        if self.samples is not None:
            return self.samples
        noise = torch.Generator().manual_seed(seed)
        if not self.dtype.is_floating_point:
            low, high = (0, limit - 1) if self.bounds is None else map(int, self.bounds)
            values = torch.randint(low, high + 1, (7, *self.shape), generator=noise)
            values[1], values[2] = low, high
            return values[:5], values[5:]
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
        if self.integral:  # a file of integers is tried where it agrees with its continuation
            values = values.round()
        return values[:5], values[5:]

    def normalise_parameters(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, 0 and 1 where the manifest states none."""
        mean = torch.zeros((), dtype=self.dtype) if self.mean is None else self.mean
        std = torch.ones((), dtype=self.dtype) if self.std is None else self.std
        return mean, std


def resolve_inputs(
    manifest: Manifest, declared: Sequence[FileInput], dtype: torch.dtype = torch.float32
) -> tuple[ResolvedInput, ...]:
    """Unite the manifest's inputs with the file's, in the file's order.

    Args:
        manifest: the owner's word.
        declared: the file's.
        dtype: that the file computes in, for inputs of which it tells no data type.

    Raises:
        InvalidRequest: naming the manifest's field that is missing, or that contradicts the file.
        ModelRejected: the file has no input, or one that no caller could send.
    """
    if not declared:
        raise ModelRejected("the file has no input, so there is nothing to classify")
    paired = _paired(manifest.inputs, declared)
    items = [_resolve(place, spec, told, len(declared), dtype) for place, spec, told in paired]
    if all(item.default is not None for item in items):
        raise InvalidRequest.field(
            "manifest.inputs", "every input has a default, so callers could send nothing"
        )
    first = next(item for item in items if item.default is None)
    return tuple(
        item if item.default is None or item.sizes or item.shape else _like(item, first)
        for item in items
    )


def _like(item: ResolvedInput, first: ResolvedInput) -> ResolvedInput:
    return replace(item, shape=first.shape, sizes=first.sizes)


def _paired(
    specs: Sequence[InputSpec], declared: Sequence[FileInput]
) -> list[tuple[str, InputSpec, FileInput]]:
    names = [told.name for told in declared]
    listed = ", ".join(names)
    if len(specs) > len(declared):
        raise InvalidRequest.field(
            "manifest.inputs",
            f"{len(specs)} are listed, but the file has {len(declared)} ({listed})",
        )
    found: dict[int, tuple[int, InputSpec]] = {}
    by_name = len(declared) > 1 and any(spec.name in names for spec in specs)
    for index, spec in enumerate(specs):
        place = index
        if by_name or (spec.name is not None and declared[index].shape is not None):
            if spec.name not in names:
                raise InvalidRequest.field(
                    f"manifest.inputs[{index}].name",
                    f"the file's input is {names[0]!r}"
                    if len(names) == 1
                    else f"the file's inputs are {listed}",
                )
            place = names.index(spec.name)
        if place in found:
            raise InvalidRequest.field(f"manifest.inputs[{index}].name", "it is listed twice")
        found[place] = (index, spec)
    return [
        (f"manifest.inputs[{index}]", spec, told)
        for told, (index, spec) in zip(
            declared,
            (found.get(place, (place, InputSpec())) for place in range(len(declared))),
            strict=True,
        )
    ]


def _resolve(
    field: str, spec: InputSpec, told: FileInput, count: int, computes: torch.dtype
) -> ResolvedInput:
    fixed_batch = told.shape[0] if told.shape else None
    if told.shape == ():
        raise ModelRejected(f"the input {told.name!r} is a single number, not one row per example")
    if fixed_batch and fixed_batch > _MOST_ROWS:
        raise ModelRejected(
            f"the file takes {fixed_batch} rows at a time; at most {_MOST_ROWS} are served"
        )
    default = spec.default
    if default is None and "default" not in spec.model_fields_set and count > 1:
        default = _DEFAULTS.get(told.name)
    sizes = _sizes_of(field, spec, told, optional=default is not None)
    shape = tuple(size for size in sizes if size is not None)
    notes = []
    if default is not None and spec.default is None:
        notes.append(
            f"The input {told.name} is {default:g} everywhere; state inputs with a default of "
            "null for it to let callers send it."
        )
    integral = told.dtype is not None and not told.dtype.is_floating_point
    sent = spec.dtype if "dtype" in spec.model_fields_set else None
    kind = spec.kind
    if kind is None and told.dtype is not None:
        kind = None if integral else InputKind.VALUES
    double = (told.dtype or computes) is torch.float64
    dtype = torch.float64 if double else torch.float32
    if kind in (InputKind.TOKENS, InputKind.INTEGERS):
        dtype = torch.int64
    if sent and "int" in sent and kind is InputKind.VALUES and not integral:
        notes.append(
            f"The manifest says that callers send {sent}; the model is served with "
            f"{_name(dtype)} inputs in its bounds."
        )
    layout = spec.layout or _layout(sizes)
    if len(sizes) != {"CHW": 3, "HWC": 3, "CL": 2}.get(layout, len(sizes)):
        raise _wrong(field, "layout", f"{layout} does not fit a row of shape {_shown(sizes)}")
    free = len(shape) < len(sizes)
    item = ResolvedInput(
        name=spec.name or told.name,
        shape=() if free else shape,
        layout=layout,
        dtype=dtype,
        bounds=None if spec.bounds is None else Bounds(*spec.bounds),
        mean=_per_channel(field, "mean", spec.mean, sizes, layout, dtype),
        std=_per_channel(field, "std", spec.std, sizes, layout, dtype),
        fixed_batch=fixed_batch or None,
        sizes=sizes if free else (),
        file_dtype=told.dtype,
        kind=kind,
        embedding=spec.embedding,
        default=default,
        sent_integers=None if sent is None else "int" in sent or sent == "bool",
        field=field,
        features=_features(field, spec.features, sizes),
        notes=notes,
    )
    if not free or spec.example is None:
        return item
    if len(spec.example) != len(sizes) or any(
        size not in (None, stated) for size, stated in zip(sizes, spec.example, strict=True)
    ):
        raise _wrong(field, "example", f"{list(spec.example)} is no row of {_shown(sizes)}")
    return replace(item, shape=spec.example)


def _features(
    field: str, names: tuple[str, ...] | None, sizes: tuple[int | None, ...]
) -> tuple[str, ...]:
    if names is None:
        return ()
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise _wrong(field, "features", f"a row of {_shown(sizes)} has no fixed number of values")
    if len(names) != math.prod(known):
        raise _wrong(
            field, "features", f"{len(names)} names for the {math.prod(known)} values of a row"
        )
    return names


def _wrong(place: str, name: str, description: str) -> InvalidRequest:
    return InvalidRequest.field(f"{place}.{name}", description)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sizes_of(
    field: str, spec: InputSpec, told: FileInput, *, optional: bool
) -> tuple[int | None, ...]:
    known = told.shape[1:] if told.shape is not None else None
    stated = spec.shape
    if stated is None and known is None:
        if optional:
            return ()
        raise _wrong(
            field,
            "shape",
            "the file does not tell the shape of its input; give that of one row, without the "
            "batch axis, such as [3, 224, 224]; null stands for a free size",
        )
    if stated is None or known is None:
        sizes = stated if stated is not None else known or ()
    else:
        fits = len(stated) == len(known) and all(
            None in (a, b) or a == b for a, b in zip(stated, known, strict=True)
        )
        if not fits:
            raise _wrong(
                field, "shape", f"the file's input takes {_shown(known)}, not {_shown(stated)}"
            )
        sizes = tuple(b if a is None else a for a, b in zip(stated, known, strict=True))
    if math.prod(size or 1 for size in sizes) > 1 << 28:
        raise _wrong(field, "shape", f"{_shown(sizes)} is too large for one row")
    return sizes


def _shown(shape: Sequence[int | None]) -> str:
    return str(["free" if size is None else size for size in shape]).replace("'", "")


def _layout(sizes: tuple[int | None, ...]) -> str:
    if len(sizes) == 3 and sizes[0] in _CHANNELS:
        return "CHW"
    if len(sizes) == 3 and sizes[2] in _CHANNELS:
        return "HWC"
    return "CL" if len(sizes) == 2 else "other"


def _per_channel(
    field: str,
    name: str,
    values: tuple[float, ...] | float | None,
    sizes: tuple[int | None, ...],
    layout: str,
    dtype: torch.dtype,
) -> Tensor | None:
    if values is None:
        return None
    if not dtype.is_floating_point:
        raise _wrong(field, name, "an input of integers is not normalised")
    tensor = torch.tensor(values, dtype=dtype)
    if tensor.dim() == 0 or len(tensor) == 1:
        return tensor.reshape(())
    axis = {"CHW": 0, "CL": 0, "HWC": 2}.get(layout, 0 if len(sizes) == 1 else None)
    if axis is None:
        raise _wrong(
            field, "layout", f"needed to tell which axis of {_shown(sizes)} the {name} is for"
        )
    if len(tensor) != sizes[axis]:
        raise _wrong(field, name, f"{len(tensor)} values for {sizes[axis]} channels")
    return tensor.reshape([-1 if position == axis else 1 for position in range(len(sizes))])

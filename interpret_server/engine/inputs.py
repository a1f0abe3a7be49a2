"""The inputs of a call, checked and as a model's rows."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

import torch
from torch import Tensor

from ..errors import InvalidRequest
from .api import MAX_ROWS, Array, InputInfo
from .arrays import to_tensor
from .request import Served

Sent = Array | tuple[bytes, ...] | Mapping[str, Array]


def decode_inputs(sent: Sent, served: Served) -> Tensor:
    """What a caller sent as rows that `Classifier.encode` takes, on the CPU.

    Raises:
        InvalidRequest: naming `inputs`, or `inputs.<name>` for a model of several inputs.
    """
    infos, name = served.info.inputs, served.classifier.name
    if isinstance(sent, tuple):
        limit_rows("inputs", len(sent))
        values = [_decode_images(sent, served)]
        fields = ["inputs"]
    else:
        arrays = _by_name(sent, infos, name)
        fields = [f"inputs.{info.name}" if len(infos) > 1 else "inputs" for info in infos]
        values = [
            _decode_array(arrays[info.name], info, field, served)
            for info, field in zip(infos, fields, strict=True)
        ]
    for value, info, field in zip(values, infos, fields, strict=True):
        _check_shape(value, info, field, name)
        limit_rows(field, len(value))
        _check_values(value, info, field, name)
    _check_together(values, infos, fields)
    rows = served.classifier.pack(values)
    served.classifier.check_size(rows)
    return rows


def _by_name(
    sent: Array | Mapping[str, Array], infos: tuple[InputInfo, ...], name: str
) -> Mapping[str, Array]:
    names = [info.name for info in infos]
    if isinstance(sent, Array):
        if len(infos) > 1:
            raise InvalidRequest.field(
                "inputs", f"{name} takes {' and '.join(names)}; send them by these names"
            )
        return {names[0]: sent}
    for key in sent:
        if key not in names:
            close = get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}"
            raise InvalidRequest.field(f"inputs.{key}", f"{name} has no such input; {hint}")
    for wanted in names:
        if wanted not in sent:
            raise InvalidRequest.field(f"inputs.{wanted}", f"{name} needs it")
    return sent


def _decode_array(array: Array, info: InputInfo, field: str, served: Served) -> Tensor:
    if info.kind == "values":
        if "int" in array.dtype and not info.integers:
            raise InvalidRequest.field(
                field,
                f"{array.dtype} values, where {served.classifier.name} takes {info.dtype}; "
                "convert them, or load the model with inputs[0].dtype in its manifest",
            )
        return numbers(array, field, served.classifier.dtype)
    if "int" not in array.dtype and array.dtype != "bool":
        raise InvalidRequest.field(
            field, f"{served.classifier.name} takes integers here, not {array.dtype}"
        )
    return to_tensor(array, field).to(torch.int64)


def _decode_images(images: tuple[bytes, ...], served: Served) -> Tensor:
    from ..models.images import decode_images

    info, classifier = served.info, served.classifier
    if len(info.inputs) > 1:
        names = " and ".join(item.name for item in info.inputs)
        raise InvalidRequest.field(
            "inputs.images", f"{classifier.name} takes {names}; send them as tensors, by name"
        )
    decoded = decode_images(
        images,
        info.manifest.input,
        shape=classifier.input_shape,
        layout=info.input_layout,
        bounds=info.bounds,
    )
    return decoded.to(classifier.dtype)


def numbers(array: Array, field: str, dtype: torch.dtype, *, boolean: bool = False) -> Tensor:
    """A caller's tensor in the model's dtype.

    Any numeric type is converted; boolean values only where they are allowed.
    """
    tensor = to_tensor(array, field)
    if tensor.dtype is torch.bool and not boolean:
        raise InvalidRequest.field(field, "the data type must be numeric, not bool")
    return tensor.to(dtype)


def _check_shape(tensor: Tensor, info: InputInfo, field: str, name: str) -> None:
    row = tuple(tensor.shape[1:])
    fits = len(row) == len(info.shape) and all(
        known in (-1, size) and size for known, size in zip(info.shape, row, strict=True)
    )
    if not tensor.dim() or not fits:
        sizes = ["rows", *("free" if size < 0 else str(size) for size in info.shape)]
        raise InvalidRequest.field(
            field, f"the shape is {list(tensor.shape)}; {name} takes [{', '.join(sizes)}]"
        )


def _check_together(values: list[Tensor], infos: tuple[InputInfo, ...], fields: list[str]) -> None:
    """Several inputs have one number of rows, and one free size."""
    first: int | None = None
    for value, info, field in zip(values, infos, fields, strict=True):
        if len(value) != len(values[0]):
            raise InvalidRequest.field(
                field, f"{len(value)} rows, where {infos[0].name} has {len(values[0])}"
            )
        for known, size in zip(info.shape, value.shape[1:], strict=True):
            if known >= 0 or len(infos) == 1:
                continue
            first = size if first is None else first
            if size != first:
                raise InvalidRequest.field(
                    field, f"a free size of {size}, where another input has {first}"
                )


def limit_rows(field: str, rows: int) -> None:
    """Refuse no rows and too many.

    Raises:
        InvalidRequest: naming the field.
    """
    if not rows:
        raise InvalidRequest.field(field, "there are no rows")
    if rows > MAX_ROWS:
        raise InvalidRequest.field(
            field, f"{rows} rows in one call; send at most {MAX_ROWS} and split the rest"
        )


def check_finite(tensor: Tensor, field: str) -> tuple[float, float]:
    """Refuse NaN and infinities, naming the first row that holds one.

    Returns:
        The smallest and the largest value; (0, 0) where there is none.
    """
    if not tensor.numel():
        return 0.0, 0.0
    smallest, largest = (value.item() for value in tensor.aminmax())
    if math.isfinite(smallest) and math.isfinite(largest):
        return smallest, largest
    bad = ~tensor.flatten(1).isfinite()
    row = int(bad.any(1).nonzero()[0])
    value = tensor[row].flatten()[bad[row]][0]
    held = "NaN" if value.isnan() else "an infinite value"
    raise InvalidRequest.field(field, f"row {row} holds {held}")


def _check_values(inputs: Tensor, info: InputInfo, field: str, name: str) -> None:
    smallest, largest = check_finite(inputs, field)
    bounds = info.bounds
    if bounds is None and info.limit is not None:
        bounds = (0, info.limit - 1)
    if bounds is None:
        return
    lower, upper = _rounded(bounds, inputs.dtype)
    if smallest < lower or largest > upper:
        value = smallest if smallest < lower else largest
        row = int((inputs == value).flatten(1).any(1).nonzero()[0])
        raise InvalidRequest.field(
            field,
            f"row {row} holds {_beyond(value, lower, upper)}, outside the "
            f"{'tokens' if info.kind == 'tokens' else 'bounds'} [{bounds[0]:g}, {bounds[1]:g}] "
            f"of {name}",
        )


@cache
def _rounded(bounds: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    """Bounds in the model's own dtype: one such as 0.1 is rounded as the input is."""
    lower, upper = torch.tensor(bounds, dtype=dtype).tolist()
    return lower, upper


def _beyond(value: float, lower: float, upper: float) -> str:
    """The value in as many digits as show that it is outside."""
    short = f"{value:g}"
    return f"{value:.9g}" if lower <= float(short) <= upper else short

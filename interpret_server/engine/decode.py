"""From a `Call` to a checked `Request`: every refusal that needs no computation happens here."""

import math
import secrets
from difflib import get_close_matches
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import InvalidRequest, MissingCapability, Violation
from ..models.classifier import Capability, Classifier
from ..plugin import Batch, Inputs, Rows
from ..registry import AnyPlugin, Registration
from .api import Array, Call
from .arrays import to_tensor
from .request import Request, Served
from .targets import decode_targets

MAX_ROWS = 16_384  # of one call
_MAX_SEED = (1 << 64) - 1


def decode(call: Call, served: Served, registration: Registration) -> Request:
    """Check a call against its model and plugin, and make its batch.

    Raises:
        InvalidRequest: naming the field that is wrong.
        MissingCapability: the model lacks what the plugin requires.
    """
    plugin, classifier = registration.plugin, served.classifier
    check_capabilities(plugin, classifier)
    params = decode_params(plugin, call.params)
    plugin.check(classifier, params)
    inputs = _decode_inputs(call, plugin, served)
    tensors = _decode_tensors(call, plugin, classifier)
    rows = _count_rows(call, inputs, tensors)
    if plugin.rows is Rows.GROUP and rows > served.max_batch:
        raise InvalidRequest.field(
            "inputs",
            f"{plugin.name} treats the rows of a call as one group, and {classifier.name} takes "
            f"at most {served.max_batch} rows at once, not {rows}",
        )
    targets, predict = decode_targets(
        call.targets, plugin, classifier, rows, has_inputs=inputs is not None
    )
    batch = Batch(
        inputs=classifier.neutral(rows) if inputs is None else inputs,
        targets=targets,
        seeds=_decode_seeds(call.seeds, rows),
        tensors=tensors,
        has_inputs=inputs is not None,
    )
    return Request(call, served, registration, params, params.model_dump_json(), batch, predict)


def check_capabilities(plugin: AnyPlugin, classifier: Classifier) -> None:
    """Refuse a plugin whose needs the model does not meet.

    Raises:
        MissingCapability: with the reason that was found when the model was loaded.
    """
    for capability in sorted(plugin.requires - classifier.capabilities):
        why = classifier.lacking.get(capability, f"{classifier.name} does not have it")
        raise MissingCapability(f"{plugin.name} requires {capability.value}: {why}")


def decode_params(plugin: AnyPlugin, text: str) -> Any:
    """The plugin's parameters from JSON text; empty text means the defaults.

    Raises:
        InvalidRequest: with one violation `params.<name>` per wrong parameter.
    """
    try:
        return plugin.params_type.model_validate_json(text or "{}")
    except ValidationError as error:
        names = list(plugin.params_type.model_fields)
        violations = [
            Violation(
                ".".join(["params", *(str(part) for part in item["loc"])]),
                _describe(plugin.name, names, item),
            )
            for item in error.errors(include_url=False, include_context=False)
        ]
    message = "; ".join(f"{item.field}: {item.description}" for item in violations)
    raise InvalidRequest(message, violations=violations)


def _describe(plugin: str, names: list[str], item: Any) -> str:
    if item["type"] == "extra_forbidden":
        close = get_close_matches(str(item["loc"][-1]), names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'none'}"
        return f"{plugin} has no such parameter; {hint}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]


def _decode_inputs(call: Call, plugin: AnyPlugin, served: Served) -> Tensor | None:
    if call.inputs is None:
        if plugin.inputs is Inputs.REQUIRED:
            raise InvalidRequest.field("inputs", f"{plugin.name} needs inputs")
        return None
    if plugin.inputs is Inputs.FORBIDDEN:
        raise InvalidRequest.field("inputs", f"{plugin.name} takes no inputs; leave them out")
    classifier = served.classifier
    if isinstance(call.inputs, Array):
        sent, promised = call.inputs.dtype, served.info.manifest.input.dtype
        if "int" in sent and "int" not in promised:
            raise InvalidRequest.field(
                "inputs",
                f"{sent} values, where {classifier.name} takes {promised}; convert them, or load "
                "the model with inputs[0].dtype in its manifest",
            )
        inputs = numbers(call.inputs, "inputs", classifier.dtype)
    else:
        _limit_rows("inputs", len(call.inputs))
        inputs = _decode_images(call.inputs, served)
    _check_row_shape(inputs, "inputs", classifier)
    _limit_rows("inputs", len(inputs))
    _check_values(inputs, "inputs", classifier)
    return inputs


def _decode_images(images: tuple[bytes, ...], served: Served) -> Tensor:
    from ..models.images import decode_images

    info = served.info
    decoded = decode_images(
        images,
        info.manifest.input,
        shape=info.input_shape,
        layout=info.input_layout,
        bounds=info.bounds,
    )
    return decoded.to(served.classifier.dtype)


def numbers(array: Array, field: str, dtype: torch.dtype, *, boolean: bool = False) -> Tensor:
    """A caller's tensor in the model's dtype.

    Any numeric type is converted; boolean values only where they are allowed.
    """
    tensor = to_tensor(array, field)
    if tensor.dtype is torch.bool and not boolean:
        raise InvalidRequest.field(field, "the data type must be numeric, not bool")
    if tensor.is_floating_point() and not dtype.is_floating_point:
        raise InvalidRequest.field(field, f"the model takes integers, not {array.dtype}")
    return tensor.to(dtype)


def _check_row_shape(tensor: Tensor, field: str, classifier: Classifier) -> None:
    if tuple(tensor.shape[1:]) != classifier.input_shape or not tensor.dim():
        raise InvalidRequest.field(
            field,
            f"the shape is {list(tensor.shape)}; {classifier.name} takes "
            f"[rows, {', '.join(map(str, classifier.input_shape))}]",
        )


def _limit_rows(field: str, rows: int) -> None:
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


def _check_values(inputs: Tensor, field: str, classifier: Classifier) -> None:
    smallest, largest = check_finite(inputs, field)
    if Capability.BOUNDS not in classifier.capabilities:
        return
    # Compared in the model's own dtype: a bound such as 0.1 is rounded as the input is.
    lower, upper = torch.tensor(classifier.bounds, dtype=inputs.dtype).tolist()
    if smallest < lower or largest > upper:
        value = smallest if smallest < lower else largest
        row = int((inputs == value).flatten(1).any(1).nonzero()[0])
        raise InvalidRequest.field(
            field,
            f"row {row} holds {_beyond(value, lower, upper)}, outside the bounds "
            f"[{classifier.bounds.lower:g}, {classifier.bounds.upper:g}] of {classifier.name}",
        )


def _beyond(value: float, lower: float, upper: float) -> str:
    """The value in as many digits as show that it is outside."""
    short = f"{value:g}"
    return f"{value:.9g}" if lower <= float(short) <= upper else short


def _decode_tensors(call: Call, plugin: AnyPlugin, classifier: Classifier) -> dict[str, Tensor]:
    for name in call.tensors:
        if name not in plugin.tensors:
            known = ", ".join(plugin.tensors) or "none"
            raise InvalidRequest.field(
                f"tensors.{name}", f"{plugin.name} takes no such tensor; it takes {known}"
            )
    decoded: dict[str, Tensor] = {}
    for name, declared in plugin.tensors.items():
        field = f"tensors.{name}"
        if name not in call.tensors:
            if declared.required:
                raise InvalidRequest.field(field, f"{plugin.name} needs it")
            continue
        tensor = numbers(call.tensors[name], field, classifier.dtype, boolean=True)
        if not tensor.dim():
            raise InvalidRequest.field(field, "the first axis must be the rows")
        if declared.like_input:
            _check_row_shape(tensor, field, classifier)
        check_finite(tensor, field)
        decoded[name] = tensor
    return decoded


def _count_rows(call: Call, inputs: Tensor | None, tensors: dict[str, Tensor]) -> int:
    """The rows that every field agrees on; a single target or seed stands for all rows."""
    exact = {f"tensors.{name}": len(tensor) for name, tensor in tensors.items()}
    loose = {"target": len(call.targets), "seeds": len(call.seeds)}
    absent = max([1, *exact.values(), *loose.values()])
    rows = absent if inputs is None else len(inputs)
    for field, count in exact.items():
        if count != rows:
            raise InvalidRequest.field(field, f"{count} rows, where the request has {rows}")
    for field, count in loose.items():
        if count not in (0, 1, rows):
            raise InvalidRequest.field(
                field, f"{count} given for {rows} rows; give one for all, or one per row"
            )
    _limit_rows("inputs", rows)
    return rows


def _decode_seeds(seeds: tuple[int, ...], rows: int) -> tuple[int, ...]:
    if any(not 0 <= seed <= _MAX_SEED for seed in seeds):
        raise InvalidRequest.field("seeds", "every seed must be between 0 and 2**64 - 1")
    if len(seeds) == rows > 1:
        return seeds
    first = seeds[0] if seeds else secrets.randbits(48)
    return tuple((first + row) & _MAX_SEED for row in range(rows))


def decoded_bytes(call: Call) -> int:
    """How many bytes of tensors a call carries; encoded images count for more than their bytes."""
    arrays = list(call.tensors.values())
    arrays += [target.direction for target in call.targets if target.direction is not None]
    total = sum(len(memoryview(array.data).cast("B")) for array in arrays)
    if isinstance(call.inputs, Array):
        return total + len(memoryview(call.inputs.data).cast("B"))
    return total + sum(100_000 + len(image) for image in call.inputs or ())

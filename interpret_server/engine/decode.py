"""From a `Call` to a checked `Request`: every refusal that needs no computation happens here."""

import secrets
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from ..errors import InvalidRequest
from ..models.classifier import Classifier
from ..plugin import Batch, Inputs, Rows
from ..registry import AnyPlugin, Registration
from .api import Array, Call
from .drawing import check_rendering
from .inputs import check_finite, decode_inputs, limit_rows, numbers
from .methods import Methods, Plugins
from .parameters import check_capabilities, decode_params
from .request import Request, Served
from .targets import decode_targets

_MAX_SEED = (1 << 64) - 1
_ALIGNMENT = 64  # bytes, of memory that torch allocates


def decode(
    call: Call,
    served: Served,
    registration: Registration,
    plugins: Plugins,
    models: Mapping[str, Served] = MappingProxyType({}),
) -> Request:
    """Check a call against its model and plugin, and make its batch.

    Args:
        call: as the caller wrote it.
        served: the model.
        registration: the plugin.
        plugins: every plugin that the call may name besides.
        models: the second models by role, which suit them as far as `roles` can tell.

    Raises:
        InvalidRequest: naming the field that is wrong.
        MissingCapability: the model lacks what the plugin requires.
    """
    plugin, classifier = registration.plugin, served.classifier
    check_capabilities(plugin, classifier)
    params = decode_params(plugin, call.params)
    plugin.check(classifier, params)
    methods = Methods(
        classifier,
        plugins,
        call.tensors.keys() & plugin.tensors.keys(),
        {role: second.classifier for role, second in models.items()},
    )
    params = methods.resolve(plugin, params)
    inputs = _decode_inputs(call, plugin, served)
    row = classifier.input_shape if inputs is None else classifier.row_shape(inputs)
    _check_rows(plugin, row, inputs, models)
    tensors = _decode_tensors(call, plugin, classifier, row)
    rows = _count_rows(call, inputs, tensors)
    check_rendering(call, rows)
    smallest = min((served, *models.values()), key=lambda item: item.max_batch)
    if plugin.rows is Rows.GROUP and rows > smallest.max_batch:
        raise InvalidRequest.field(
            "inputs",
            f"{plugin.name} treats the rows of a call as one group, and {smallest.info.name} takes "
            f"at most {smallest.max_batch} rows at once, not {rows}",
        )
    targets, predict = decode_targets(
        call.targets, plugin, classifier, rows, row, has_inputs=inputs is not None
    )
    methods.check_targets(targets.kind)
    if call.alone:
        inputs = None if inputs is None else _aligned(inputs)
        tensors = {name: _aligned(tensor) for name, tensor in tensors.items()}
    batch = Batch(
        inputs=classifier.neutral(rows) if inputs is None else inputs,
        targets=targets,
        seeds=_decode_seeds(call.seeds, rows),
        tensors=tensors,
        has_inputs=inputs is not None,
    )
    return Request(
        call,
        served,
        registration,
        params,
        params.model_dump_json(),
        batch,
        predict,
        {method.name: method for method in methods.found},
        models,
    )


def _aligned(tensor: Tensor) -> Tensor:
    """The values where torch would put them: kernels may round otherwise at odd addresses."""
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def _check_rows(
    plugin: AnyPlugin, row: tuple[int, ...], inputs: Tensor | None, models: Mapping[str, Served]
) -> None:
    """Refuse rows of a size that a second model does not take."""
    for role, second in models.items():
        if not plugin.models[role].same_inputs:
            continue
        if not second.classifier.accepts(row):
            sizes = ", ".join(map(str, row))
            raise InvalidRequest.field(
                f"models.{role}", f"{second.info.name} does not take rows of shape [{sizes}]"
            )
        if inputs is not None:
            second.classifier.check_size(inputs)


def _decode_inputs(call: Call, plugin: AnyPlugin, served: Served) -> Tensor | None:
    if call.inputs is None:
        if plugin.inputs is Inputs.REQUIRED:
            raise InvalidRequest.field("inputs", f"{plugin.name} needs inputs")
        return None
    if plugin.inputs is Inputs.FORBIDDEN:
        raise InvalidRequest.field("inputs", f"{plugin.name} takes no inputs; leave them out")
    return decode_inputs(call.inputs, served)


def _decode_tensors(
    call: Call, plugin: AnyPlugin, classifier: Classifier, row: tuple[int, ...]
) -> dict[str, Tensor]:
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
            _check_like_input(tensor, field, classifier, row)
        check_finite(tensor, field)
        decoded[name] = tensor
    return decoded


def _check_like_input(
    tensor: Tensor, field: str, classifier: Classifier, row: tuple[int, ...]
) -> None:
    if classifier.packing is not None:
        raise InvalidRequest.field(
            field, f"{classifier.name} takes several inputs, and so no tensor like its input"
        )
    if tuple(tensor.shape[1:]) != row:
        raise InvalidRequest.field(
            field,
            f"the shape is {list(tensor.shape)}; {classifier.name} takes "
            f"[rows, {', '.join(map(str, row))}]",
        )


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
    limit_rows("inputs", rows)
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
        arrays = [call.inputs]
    elif isinstance(call.inputs, Mapping):
        arrays = list(call.inputs.values())
    else:
        return total + sum(100_000 + len(image) for image in call.inputs or ())
    return total + sum(len(memoryview(array.data).cast("B")) for array in arrays)

"""Between the values of `engine.api` and the messages of `protocol.proto`, exactly both ways.

The front end trusts no worker: what a worker sends either decodes to a value of the right types
and sizes or raises `ProtocolError`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ... import errors
from ...errors import InterpretError, InvalidRequest, Violation
from ...models.manifest import Manifest
from ..api import (
    ITEM_SIZES,
    Array,
    Call,
    Event,
    ModelInfo,
    PluginInfo,
    Prediction,
    Preview,
    Progress,
    Provenance,
    Result,
    RowWarning,
    Target,
)
from . import protocol_pb2 as pb

SPAN_BYTES = 16 * 1024  # blocks of at least this size go into shared memory
ALIGNMENT = 64  # bytes
MAX_JSON = 16 << 20  # characters of a worker's description of its model
_MAX_AXES = 64  # torch has no more either
_MAX_ROWS = 1 << 16  # of a result, and items of any of its lists
_MAX_SENTENCE = 20_000  # characters of an error's message
_MAX_VIOLATIONS = 256

Bytes = bytes | bytearray | memoryview
Put = Callable[[Bytes], pb.Block]
Get = Callable[[pb.Block], bytes | memoryview]
T = TypeVar("T")


class ProtocolError(Exception):
    """The other side sent what it never should; one sentence for the log."""


class Writer:
    """Places blocks: large ones one after the other in a segment, small ones in the message.

    Args:
        view: the segment's memory; None puts everything in the message.
        segment: its id.
    """

    def __init__(self, view: memoryview | None = None, segment: int = 0) -> None:
        self._view, self._segment, self._end = view, segment, 0

    def __call__(self, data: Bytes) -> pb.Block:
        """Where the bytes are now. Raises ProtocolError where the segment is full."""
        data = memoryview(data).cast("B")
        if self._view is None or len(data) < SPAN_BYTES:
            return pb.Block(inline=bytes(data))
        start, end = self._end, self._end + len(data)
        if end > len(self._view):
            raise ProtocolError(f"a segment of {len(self._view)} bytes is too small")
        self._view[start:end] = data
        self._end = _aligned(end)
        return pb.Block(span=pb.Span(segment=self._segment, offset=start, length=len(data)))


def inline(block: pb.Block) -> bytes:
    """Reads blocks that are not in shared memory. Raises ProtocolError for the others."""
    if block.HasField("span"):
        raise ProtocolError("a block is in shared memory that was not lent")
    return block.inline


def spans_bytes(value: Call | Event) -> int:
    """Bytes of shared memory that a `Writer` fills with a call or an event."""
    sizes = [memoryview(data).nbytes for data in _data(value)]
    return sum(_aligned(size) for size in sizes if size >= SPAN_BYTES)


def spans(message: pb.Event) -> Iterator[pb.Span]:
    """The spans of an event's tensors and pictures."""
    kind = message.WhichOneof("value")
    if kind is None or kind == "progress":
        return
    value = getattr(message, kind)
    blocks = [item.array.data for item in value.tensors]
    blocks += [block for item in value.pictures for block in item.files]
    if kind == "result":
        blocks += [target.direction.data for target in value.provenance.targets]
    for block in blocks:
        if block.HasField("span"):
            yield block.span


def encode_call(call: Call, put: Put) -> pb.Call:
    """A call as a message.

    Args:
        put: places bytes; a `Writer`.

    Raises:
        InvalidRequest: a number or a text that no message can hold.
    """
    try:
        message = pb.Call(
            model=call.model,
            plugin=call.plugin,
            params=call.params,
            targets=[_encode_target(target, put) for target in call.targets],
            seeds=call.seeds,
            tensors=_encode_arrays(call.tensors, put),
            render=call.render,
            half=call.half,
            previews=call.previews,
            timeout=call.timeout,
            client=call.client,
            priority=call.priority,
        )
        if isinstance(call.inputs, Array):
            message.array.CopyFrom(_encode_array(call.inputs, put))
        elif isinstance(call.inputs, Mapping):
            message.named.CopyFrom(pb.NamedArrays(arrays=_encode_arrays(call.inputs, put)))
        elif call.inputs is not None:
            message.images.CopyFrom(pb.Files(files=map(put, call.inputs)))
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(_unfit(call)) from None
    return message


def decode_call(message: pb.Call, get: Get) -> Call:
    """The call of a message; arrays are as the caller sent them, right or wrong.

    Args:
        get: finds the bytes of a block.

    Raises:
        ProtocolError: a block cannot be found.
    """
    kind = message.WhichOneof("inputs")
    inputs: Array | tuple[bytes, ...] | dict[str, Array] | None = None
    if kind == "array":
        inputs = _decode_array(message.array, get)
    elif kind == "images":
        inputs = tuple(bytes(get(block)) for block in message.images.files)
    elif kind == "named":
        inputs = _decode_arrays(message.named.arrays, get)
    return Call(
        model=message.model,
        plugin=message.plugin,
        params=message.params,
        inputs=inputs,
        targets=tuple(_decode_target(target, get) for target in message.targets),
        seeds=tuple(message.seeds),
        tensors=_decode_arrays(message.tensors, get),
        render=message.render,
        half=message.half,
        previews=message.previews,
        timeout=message.timeout if message.HasField("timeout") else None,
        client=message.client,
        priority=message.priority,
    )


def encode_event(event: Event, put: Put) -> pb.Event:
    """An event as a message, whose `call` is for the sender to set.

    Raises:
        ProtocolError: a number or a text that no message can hold.
    """
    try:
        if isinstance(event, Progress):
            return pb.Event(progress=pb.Progress(done=event.done, total=event.total))
        if isinstance(event, Preview):
            return pb.Event(
                preview=pb.Preview(
                    done=event.done,
                    total=event.total,
                    tensors=_encode_arrays(event.tensors, put),
                    pictures=_encode_pictures(event.pictures, put),
                )
            )
        return pb.Event(result=_encode_result(event, put))
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"the event fits no message: {error}") from None


def decode_event(message: pb.Event, get: Get) -> Event:
    """The event of a worker's message.

    Args:
        get: finds and copies the bytes of a block; a `segments.Reader`, or `inline`.

    Raises:
        ProtocolError: it is not a whole event, an array's bytes do not fill its shape, or a block
            cannot be found.
    """
    kind = message.WhichOneof("value")
    if kind == "progress":
        return Progress(message.progress.done, message.progress.total)
    if kind == "preview":
        preview = message.preview
        return Preview(
            done=preview.done,
            total=preview.total,
            tensors=_checked_arrays(preview.tensors, get),
            pictures=_decode_pictures(preview.pictures, get),
        )
    if kind == "result":
        return _decode_result(message.result, get)
    raise ProtocolError("an event without a value")


def encode_error(error: InterpretError) -> pb.Error:
    """An error as a message."""
    return pb.Error(
        type=type(error).__name__,
        message=_text(error.message),
        violations=[
            pb.Violation(field=_text(item.field), description=_text(item.description))
            for item in error.violations[:_MAX_VIOLATIONS]
        ],
        retry_after=getattr(error, "retry_after", None),
    )


def decode_error(message: pb.Error) -> InterpretError:
    """The error of a message: of the class in `interpret_server.errors` that it names, if any."""
    found = getattr(errors, message.type, None)
    text = message.message[:_MAX_SENTENCE]
    if found is errors.Overloaded:
        wait = message.retry_after
        if message.HasField("retry_after") and math.isfinite(wait) and wait >= 0:
            return errors.Overloaded(text, retry_after=min(wait, 3600.0))
        return errors.Overloaded(text)
    if not (isinstance(found, type) and issubclass(found, InterpretError)):
        found = InterpretError
    return found(
        text,
        violations=[
            Violation(item.field[:_MAX_SENTENCE], item.description[:_MAX_SENTENCE])
            for item in message.violations[:_MAX_VIOLATIONS]
        ],
    )


# Not a number and infinity stand for themselves; what a manifest leaves out stays out.
_JSON = ConfigDict(ser_json_inf_nan="constants")
_MODEL: TypeAdapter[tuple[ModelInfo]] = TypeAdapter(tuple[ModelInfo], config=_JSON)
_PLUGINS: TypeAdapter[tuple[PluginInfo, ...]] = TypeAdapter(tuple[PluginInfo, ...], config=_JSON)
_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def model_to_json(info: ModelInfo) -> str:
    """What is known of a model, as JSON. Raises ProtocolError for a text that is not Unicode."""
    return _to_json(_MODEL, (info,))


def model_from_json(text: str) -> ModelInfo:
    """What a worker says of its model. Raises ProtocolError."""
    (info,) = _from_json(_MODEL, text, "model")
    return info


def plugins_to_json(infos: tuple[PluginInfo, ...]) -> str:
    """The plugins, as JSON. Raises ProtocolError for a text that is not Unicode."""
    return _to_json(_PLUGINS, infos)


def plugins_from_json(text: str) -> tuple[PluginInfo, ...]:
    """The plugins that a nursery describes. Raises ProtocolError."""
    return _from_json(_PLUGINS, text, "plugins")


def manifest_to_json(manifest: Manifest) -> str:
    """A manifest as JSON, with only the fields that were given."""
    return _to_json(_MANIFEST, manifest)


def manifest_from_json(text: str) -> Manifest:
    """The manifest of `manifest_to_json`. Raises ProtocolError."""
    return _from_json(_MANIFEST, text, "manifest")


def _to_json(adapter: TypeAdapter[T], value: T) -> str:
    try:
        return adapter.dump_json(value, exclude_unset=True).decode()
    except ValueError as error:
        raise ProtocolError(f"it has no JSON form: {error}") from None


def _from_json(adapter: TypeAdapter[T], text: str, what: str) -> T:
    if len(text) > MAX_JSON:
        raise ProtocolError(f"{len(text)} characters of JSON describe the {what}")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ProtocolError(
            f"the {what} is described wrongly: {error.error_count()} errors"
        ) from None


def _encode_array(array: Array, put: Put) -> pb.Array:
    return pb.Array(dtype=array.dtype, shape=array.shape, data=put(array.data))


def _encode_arrays(arrays: Mapping[str, Array], put: Put) -> list[pb.NamedArray]:
    return [
        pb.NamedArray(name=name, array=_encode_array(array, put)) for name, array in arrays.items()
    ]


def _encode_pictures(pictures: Mapping[str, tuple[bytes, ...]], put: Put) -> list[pb.NamedFiles]:
    return [
        pb.NamedFiles(name=name, files=[put(file) for file in files])
        for name, files in pictures.items()
    ]


def _encode_target(target: Target, put: Put) -> pb.Target:
    direction = target.direction
    return pb.Target(
        kind=target.kind,
        index=target.index,
        layer=target.layer,
        direction=None if direction is None else _encode_array(direction, put),
    )


def _encode_predictions(predictions: Iterable[Prediction]) -> list[pb.Prediction]:
    return [
        pb.Prediction(
            classes=item.classes,
            probabilities=item.probabilities,
            logits=item.logits,
            labels=item.labels,
        )
        for item in predictions
    ]


def _encode_result(result: Result, put: Put) -> pb.Result:
    source = result.provenance
    return pb.Result(
        tensors=_encode_arrays(result.tensors, put),
        metrics=[pb.Metric(name=name, values=values) for name, values in result.metrics.items()],
        before=_encode_predictions(result.before),
        after=_encode_predictions(result.after),
        warnings=[pb.RowWarning(message=item.message, rows=item.rows) for item in result.warnings],
        pictures=_encode_pictures(result.pictures, put),
        provenance=pb.Provenance(
            model=source.model,
            model_sha256=source.model_sha256,
            model_version=source.model_version,
            plugin=source.plugin,
            plugin_version=source.plugin_version,
            server_version=source.server_version,
            params=source.params,
            targets=[_encode_target(target, put) for target in source.targets],
            seeds=source.seeds,
            device=source.device,
            precision=source.precision,
            queue_seconds=source.queue_seconds,
            run_seconds=source.run_seconds,
            batch_rows=source.batch_rows,
        ),
    )


def _decode_array(message: pb.Array, get: Get) -> Array:
    return Array(message.dtype, tuple(message.shape), get(message.data))


def _decode_arrays(messages: Iterable[pb.NamedArray], get: Get) -> dict[str, Array]:
    return {item.name: _decode_array(item.array, get) for item in messages}


def _checked_array(message: pb.Array, get: Get) -> Array:
    """An array whose bytes are known to fill its shape."""
    item_size = ITEM_SIZES.get(message.dtype)
    if item_size is None or len(message.shape) > _MAX_AXES or min(message.shape, default=0) < 0:
        raise ProtocolError("an array without a known type and shape")
    array = _decode_array(message, get)
    if len(array.data) != math.prod(array.shape) * item_size:
        raise ProtocolError(
            f"{len(array.data)} bytes for an array of {array.dtype} {list(array.shape)}"
        )
    return array


def _checked_arrays(messages: Sequence[pb.NamedArray], get: Get) -> dict[str, Array]:
    _limit(messages)
    return {item.name: _checked_array(item.array, get) for item in messages}


def _decode_pictures(messages: Sequence[pb.NamedFiles], get: Get) -> dict[str, tuple[bytes, ...]]:
    _limit(messages)
    pictures = {}
    for item in messages:
        _limit(item.files)
        pictures[item.name] = tuple(bytes(get(block)) for block in item.files)
    return pictures


def _decode_target(message: pb.Target, get: Get) -> Target:
    return Target(
        kind=message.kind,
        index=tuple(message.index),
        layer=message.layer if message.HasField("layer") else None,
        direction=_decode_array(message.direction, get) if message.HasField("direction") else None,
    )


def _checked_target(message: pb.Target, get: Get) -> Target:
    if message.HasField("direction"):
        _checked_array(message.direction, get)
    return _decode_target(message, get)


def _decode_predictions(messages: Sequence[pb.Prediction]) -> tuple[Prediction, ...]:
    _limit(messages)
    return tuple(
        Prediction(
            classes=tuple(item.classes),
            probabilities=tuple(item.probabilities),
            logits=tuple(item.logits),
            labels=tuple(item.labels),
        )
        for item in messages
    )


def _decode_result(message: pb.Result, get: Get) -> Result:
    if not message.HasField("provenance"):
        raise ProtocolError("a result without its provenance")
    source = message.provenance
    for items in (message.metrics, message.warnings, source.targets, source.seeds):
        _limit(items)
    return Result(
        tensors=_checked_arrays(message.tensors, get),
        metrics={item.name: tuple(item.values) for item in message.metrics},
        before=_decode_predictions(message.before),
        after=_decode_predictions(message.after),
        warnings=tuple(RowWarning(item.message, tuple(item.rows)) for item in message.warnings),
        pictures=_decode_pictures(message.pictures, get),
        provenance=Provenance(
            model=source.model,
            model_sha256=source.model_sha256,
            model_version=source.model_version,
            plugin=source.plugin,
            plugin_version=source.plugin_version,
            server_version=source.server_version,
            params=source.params,
            targets=tuple(_checked_target(target, get) for target in source.targets),
            seeds=tuple(source.seeds),
            device=source.device,
            precision=source.precision,
            queue_seconds=source.queue_seconds,
            run_seconds=source.run_seconds,
            batch_rows=source.batch_rows,
        ),
    )


def _data(value: Call | Event) -> Iterator[Bytes]:
    """Every piece of bytes that is placed when a value is encoded."""
    if isinstance(value, Progress):
        return
    yield from (array.data for array in value.tensors.values())
    if isinstance(value, Call):
        targets = value.targets
        if isinstance(value.inputs, Array):
            yield value.inputs.data
        elif isinstance(value.inputs, Mapping):
            yield from (array.data for array in value.inputs.values())
        elif value.inputs is not None:
            yield from value.inputs
    else:
        targets = value.provenance.targets if isinstance(value, Result) else ()
        for files in value.pictures.values():
            yield from files
    yield from (target.direction.data for target in targets if target.direction is not None)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _limit(items: Sequence[Any]) -> None:
    if len(items) > _MAX_ROWS:
        raise ProtocolError(f"a list of {len(items)} items")


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _unfit(call: Call) -> str:
    if any(not 0 <= seed < 1 << 64 for seed in call.seeds):
        return "seeds: every seed must be between 0 and 2**64 - 1"
    return "the request holds a number of more than 64 bits, or a text that is not Unicode"

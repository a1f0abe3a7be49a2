"""Between the values of `engine.api` and the messages of `protocol.proto`, exactly both ways.

The front end trusts no worker: what a worker sends either decodes to a value of the right types
and sizes or raises `ProtocolError`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields

from interpret_pictures.options import Rendering

from ... import errors
from ...errors import InterpretError, InvalidRequest, Violation
from ..api import (
    Array,
    Call,
    Event,
    Prediction,
    Preview,
    Progress,
    Provenance,
    Result,
    RowWarning,
    SecondModel,
    Target,
)
from . import protocol_pb2 as pb
from .blocks import (
    Bytes,
    Get,
    Placement,
    Put,
    checked,
    checked_array,
    checked_arrays,
    checked_files,
    decode_array,
    decode_arrays,
    encode_array,
    encode_arrays,
    encode_files,
)
from .channel import MAX_BYTES
from .errors import ProtocolError

_MOST = MAX_BYTES - 1024  # bytes of a call or an event; what is around it takes the rest
_MAX_SENTENCE = 4000  # characters of an error's message
_MAX_VIOLATIONS = 64


def spans_bytes(value: Call | Event) -> int:
    """Bytes of shared memory that a `Writer` fills with a call or an event."""
    placement = Placement()
    for data in _data(value):
        placement.place(memoryview(data).nbytes)
    return placement.end


def spans(message: pb.Event) -> Iterator[pb.Span]:
    """The spans of an event's tensors and pictures. Raises ProtocolError for too many blocks."""
    kind = message.WhichOneof("value")
    if kind is None or kind == "progress":
        return
    value = getattr(message, kind)
    blocks = [item.array.data for item in checked(value.tensors)]
    blocks += [block for item in checked(value.pictures) for block in checked(item.files)]
    if kind == "result":
        blocks += [target.direction.data for target in checked(value.provenance.targets)]
    for block in checked(blocks):
        if block.HasField("span"):
            yield block.span


def encode_call(call: Call, put: Put) -> pb.Call:
    """A call as a message.

    Args:
        put: places bytes; a `Writer`.

    Raises:
        InvalidRequest: a number or a text that no message can hold, or more than one can hold.
    """
    try:
        message = pb.Call(
            model=call.model,
            plugin=call.plugin,
            params=call.params,
            targets=[_encode_target(target, put) for target in call.targets],
            seeds=call.seeds,
            tensors=encode_arrays(call.tensors, put),
            models=dict(call.models),
            render=None if call.render is None else pb.Rendering(**asdict(call.render)),
            half=call.half,
            previews=call.previews,
            timeout=call.timeout,
            client=call.client,
            priority=call.priority,
            progress=call.progress,
            alone=call.alone,
        )
        if isinstance(call.inputs, Array):
            message.array.CopyFrom(encode_array(call.inputs, put))
        elif isinstance(call.inputs, Mapping):
            message.named.CopyFrom(pb.NamedArrays(arrays=encode_arrays(call.inputs, put)))
        elif call.inputs is not None:
            message.images.CopyFrom(pb.Files(files=map(put, call.inputs)))
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(_unfit(call)) from None
    if message.ByteSize() > _MOST:
        raise InvalidRequest(
            f"the request's texts and lists take {message.ByteSize()} bytes; {_MOST} is the most"
        )
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
        inputs = decode_array(message.array, get)
    elif kind == "images":
        inputs = tuple(bytes(get(block)) for block in message.images.files)
    elif kind == "named":
        inputs = decode_arrays(message.named.arrays, get)
    return Call(
        model=message.model,
        plugin=message.plugin,
        params=message.params,
        inputs=inputs,
        targets=tuple(_decode_target(target, get) for target in message.targets),
        seeds=tuple(message.seeds),
        tensors=decode_arrays(message.tensors, get),
        models=dict(message.models),
        render=_decode_rendering(message),
        half=message.half,
        previews=message.previews,
        timeout=message.timeout if message.HasField("timeout") else None,
        client=message.client,
        priority=message.priority,
        progress=message.progress,
        alone=message.alone,
    )


def _decode_rendering(message: pb.Call) -> Rendering | None:
    if not message.HasField("render"):
        return None
    values = {item.name: getattr(message.render, item.name) for item in fields(Rendering)}
    try:
        return Rendering(**values)
    except ValueError as error:
        raise ProtocolError(f"the call's rendering: {error}") from None


def encode_event(event: Event, put: Put) -> pb.Event:
    """An event as a message, whose `call` is for the sender to set.

    Raises:
        ProtocolError: a number or a text that no message can hold, or more than one can hold.
    """
    try:
        if isinstance(event, Progress):
            return pb.Event(progress=pb.Progress(done=event.done, total=event.total))
        if isinstance(event, Preview):
            message = pb.Event(preview=_encode_preview(event, put))
        else:
            message = pb.Event(result=_encode_result(event, put))
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"the event fits no message: {error}") from None
    if message.ByteSize() > _MOST:
        raise ProtocolError(f"an event of {message.ByteSize()} bytes")
    return message


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
            tensors=checked_arrays(preview.tensors, get),
            pictures=checked_files(preview.pictures, get),
        )
    if kind == "result":
        return _decode_result(message.result, get)
    raise ProtocolError("an event without a value")


def encode_error(error: InterpretError) -> pb.Error:
    """An error as a message, which names the closest class of `interpret_server.errors`."""
    known = (kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return pb.Error(
        type=next(known, InterpretError).__name__,
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


def _encode_target(target: Target, put: Put) -> pb.Target:
    direction = target.direction
    return pb.Target(
        kind=target.kind,
        index=target.index,
        layer=target.layer,
        direction=None if direction is None else encode_array(direction, put),
    )


def _encode_preview(preview: Preview, put: Put) -> pb.Preview:
    return pb.Preview(
        done=preview.done,
        total=preview.total,
        tensors=encode_arrays(preview.tensors, put),
        pictures=encode_files(preview.pictures, put),
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
        tensors=encode_arrays(result.tensors, put),
        pictures=encode_files(result.pictures, put),
        metrics=[pb.Metric(name=name, values=values) for name, values in result.metrics.items()],
        before=_encode_predictions(result.before),
        after=_encode_predictions(result.after),
        warnings=[pb.RowWarning(message=item.message, rows=item.rows) for item in result.warnings],
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
            models=[pb.SecondModel(**vars(item)) for item in source.models],
        ),
    )


def _decode_target(message: pb.Target, get: Get, *, check: bool = False) -> Target:
    decode = checked_array if check else decode_array
    return Target(
        kind=message.kind,
        index=tuple(checked(message.index)),
        layer=message.layer if message.HasField("layer") else None,
        direction=decode(message.direction, get) if message.HasField("direction") else None,
    )


def _decode_predictions(messages: Sequence[pb.Prediction]) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(
            classes=tuple(checked(item.classes)),
            probabilities=tuple(checked(item.probabilities)),
            logits=tuple(checked(item.logits)),
            labels=tuple(checked(item.labels)),
        )
        for item in checked(messages)
    )


def _decode_result(message: pb.Result, get: Get) -> Result:
    if not message.HasField("provenance"):
        raise ProtocolError("a result without its provenance")
    source = message.provenance
    return Result(
        tensors=checked_arrays(message.tensors, get),
        metrics={item.name: tuple(checked(item.values)) for item in checked(message.metrics)},
        before=_decode_predictions(message.before),
        after=_decode_predictions(message.after),
        warnings=tuple(
            RowWarning(item.message, tuple(checked(item.rows)))
            for item in checked(message.warnings)
        ),
        pictures=checked_files(message.pictures, get),
        provenance=Provenance(
            model=source.model,
            model_sha256=source.model_sha256,
            model_version=source.model_version,
            plugin=source.plugin,
            plugin_version=source.plugin_version,
            server_version=source.server_version,
            params=source.params,
            targets=tuple(
                _decode_target(target, get, check=True) for target in checked(source.targets)
            ),
            seeds=tuple(checked(source.seeds)),
            device=source.device,
            precision=source.precision,
            queue_seconds=source.queue_seconds,
            run_seconds=source.run_seconds,
            batch_rows=source.batch_rows,
            models=tuple(
                SecondModel(item.role, item.model, item.model_sha256, item.model_version)
                for item in checked(source.models)
            ),
        ),
    )


def _data(value: Call | Event) -> Iterator[Bytes]:
    """Every piece of bytes that is placed when a value is encoded, in that order."""
    if isinstance(value, Call):
        yield from _directions(value.targets)
        yield from (array.data for array in value.tensors.values())
        if isinstance(value.inputs, Array):
            yield value.inputs.data
        elif isinstance(value.inputs, Mapping):
            yield from (array.data for array in value.inputs.values())
        elif value.inputs is not None:
            yield from value.inputs
    elif not isinstance(value, Progress):
        yield from (array.data for array in value.tensors.values())
        for files in value.pictures.values():
            yield from files
        if isinstance(value, Result):
            yield from _directions(value.provenance.targets)


def _directions(targets: Iterable[Target]) -> Iterator[Bytes]:
    return (target.direction.data for target in targets if target.direction is not None)


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _unfit(call: Call) -> str:
    if any(not 0 <= seed < 1 << 64 for seed in call.seeds):
        return "seeds: every seed must be between 0 and 2**64 - 1"
    return "the request holds a number of more than 64 bits, or a text that is not Unicode"

"""Calls, events, errors and descriptions survive the way to another process."""

import dataclasses
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from worker_values import CALL, MODEL, PLUGIN, PREVIEW, PROGRESS, RESULT, array, damaged

from interpret_server import errors
from interpret_server.engine.api import Array, Call, Event, Preview, Progress, Target
from interpret_server.engine.workers import protocol_pb2 as pb
from interpret_server.engine.workers.blocks import INLINE_BYTES, SPAN_BYTES, Writer, inline
from interpret_server.engine.workers.codec import (
    decode_call,
    decode_error,
    decode_event,
    encode_call,
    encode_error,
    encode_event,
    spans,
    spans_bytes,
)
from interpret_server.engine.workers.errors import ProtocolError
from interpret_server.errors import (
    InterpretError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Violation,
)

CALLS = [
    CALL,
    Call("m", "p"),
    Call("m", "p", progress=False),
    Call("m", "p", inputs=(b"\xff\xd8", b"")),
    Call("m", "p", inputs=()),
    Call("m", "p", inputs={"b": array((1, 2)), "a": array((1, 3), "int64", 8)}, timeout=math.inf),
    Call("m", "p", inputs={}, timeout=0.0, priority=1),
    Call("m", "p", inputs=Array("nonsense", (-1, 7), b"123")),
]
EVENTS: list[Event] = [
    PROGRESS,
    PREVIEW,
    RESULT,
    Progress(0, 0),
    Preview(0, 0, {}),
    dataclasses.replace(RESULT, tensors={}, metrics={}, before=(), after=(), pictures={}),
]
LARGE = array((64, 1024), seed=1)  # 256 KiB
MANY = Call(
    "m",
    "p",
    inputs=tuple(array((size,), "uint8", 1, size).data for size in range(9000, 9100)),
    tensors={"mask": LARGE, "lower": array((5000,), "uint8", 1), "upper": array((3, 5001))},
    targets=(Target("direction", (), "x", array((20_001,), "int8", 1)),) * 2,
)
DRAWN = dataclasses.replace(
    RESULT,
    tensors={"attributions": LARGE, "odd": array((16_385,), "uint8", 1)},
    pictures={"attributions": tuple(bytes([row]) * 15_000 for row in range(40))},
    provenance=dataclasses.replace(RESULT.provenance, targets=MANY.targets),
)


def _sent(message: Message) -> Any:
    """The message as the other side parses it."""
    return type(message).FromString(message.SerializeToString())


class Memory:
    """One segment, both sides of it."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self.writer = Writer(memoryview(self.bytes), 5)

    def read(self, block: pb.Block) -> bytes:
        if not block.HasField("span"):
            return block.inline
        assert block.span.segment == 5
        assert block.span.offset % 64 == 0
        assert block.span.length
        return bytes(self.bytes[block.span.offset :][: block.span.length])


@pytest.mark.parametrize("call", CALLS)
def test_a_call_survives(call: Call) -> None:
    decoded = decode_call(_sent(encode_call(call, Writer())), inline)
    assert decoded == call
    assert list(decoded.tensors) == list(call.tensors)
    assert type(decoded.inputs) is type(call.inputs)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_survives(event: Event) -> None:
    assert decode_event(_sent(encode_event(event, Writer())), inline) == event


def test_a_metric_that_is_not_a_number_survives() -> None:
    result = dataclasses.replace(RESULT, metrics={"norm": (math.nan,)})
    decoded = decode_event(_sent(encode_event(result, Writer())), inline)
    assert math.isnan(decoded.metrics["norm"][0])  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [CALL, PREVIEW, RESULT, MODEL, PLUGIN, MODEL.inputs[0]])
def test_the_samples_set_every_field(value: Any) -> None:
    """A field that is added and not encoded fails the tests above, once this one is satisfied."""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        assert item or item is False, field.name
        assert item != field.default


@pytest.mark.parametrize("value", [MANY, DRAWN, CALL, RESULT, PROGRESS, CALLS[2]])
def test_large_blocks_travel_in_exactly_the_shared_memory_that_was_asked_for(value: Any) -> None:
    size = spans_bytes(value)
    memory = Memory(size)
    if isinstance(value, Call):
        message: Message = encode_call(value, memory.writer)
        decoded: Any = decode_call(_sent(message), memory.read)
    else:
        message = encode_event(value, memory.writer)
        decoded = decode_event(_sent(message), memory.read)
        ends = [span.offset + span.length for span in spans(message)]
        assert size - 64 < max(ends, default=0) <= size
        assert len(set(ends)) == len(ends)
    assert decoded == value
    assert message.ByteSize() < 2 * INLINE_BYTES


def test_small_calls_need_no_shared_memory() -> None:
    small = Call("m", "p", inputs=array((SPAN_BYTES // 4 - 1,)))
    assert spans_bytes(small) == 0
    assert spans_bytes(dataclasses.replace(small, inputs=array((SPAN_BYTES // 4,)))) == SPAN_BYTES


def test_a_segment_that_is_too_small_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too small"):
        encode_call(MANY, Memory(spans_bytes(MANY) - 64).writer)


def test_an_array_of_any_layout_in_memory_is_written_as_it_is() -> None:
    values = memoryview(array((8192,)).data).cast("f").cast("B").cast("f", (64, 128))
    call = Call("m", "p", inputs=Array("float32", (64, 128), values))
    memory = Memory(spans_bytes(call))
    decoded = decode_call(encode_call(call, memory.writer), memory.read)
    assert decoded.inputs.data == values.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("m", "p", seeds=(-1,)), "seeds: every seed"),
        (Call("m", "p", seeds=(2**64,)), "seeds: every seed"),
        (Call("m", "p", targets=(Target("class", (2**63,)),)), "more than 64 bits"),
        (Call("m", "\ud800"), "not Unicode"),
        (Call("m", "p", params="x" * (16 << 20)), "is the most"),
    ],
)
def test_a_call_that_fits_no_message_is_refused(call: Call, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        encode_call(call, Writer())


@pytest.mark.parametrize(
    "event",
    [
        Progress(2**63, 1),
        Preview(0, 0, {"\udfff": LARGE}),
        Preview(0, 0, {"large": Array("uint8", (16 << 20,), bytes(16 << 20))}),
    ],
)
def test_an_event_that_fits_no_message_is_refused(event: Event) -> None:
    with pytest.raises(ProtocolError):
        encode_event(event, Writer())


def _wrong_events() -> dict[str, pb.Event]:
    def preview(**fields: Any) -> pb.Event:
        tensor = {"dtype": "float32", "shape": [1], "data": pb.Block(inline=b"1234"), **fields}
        named = pb.NamedArray(name="x", array=pb.Array(**tensor))
        return pb.Event(preview=pb.Preview(tensors=[named]))

    good = preview()
    assert decode_event(good, inline) == Preview(0, 0, {"x": Array("float32", (1,), b"1234")})
    result = encode_event(RESULT, Writer())
    headless = pb.Event()
    headless.CopyFrom(result)
    headless.result.ClearField("provenance")
    untrue = pb.Event()
    untrue.CopyFrom(result)
    untrue.result.provenance.targets[0].direction.dtype = "float16"
    rows = pb.Event()
    rows.CopyFrom(result)
    rows.result.warnings.add(rows=[0] * 70_000)
    return {
        "no value": pb.Event(call=1),
        "data type": preview(dtype="float31"),
        "no data type": preview(dtype=""),
        "negative size": preview(shape=[-1, -1]),
        "size": preview(shape=[2]),
        "no shape": preview(shape=[], data=pb.Block()),
        "overflow": preview(shape=[2**62, 4], data=pb.Block()),
        "axes": preview(shape=[1] * 65),
        "bytes": preview(data=pb.Block(inline=b"12345")),
        "span": preview(data=pb.Block(span=pb.Span(length=4))),
        "provenance": headless,
        "direction": untrue,
        "tensors": pb.Event(preview=pb.Preview(tensors=[good.preview.tensors[0]] * 70_000)),
        "pictures": pb.Event(preview=pb.Preview(pictures=[pb.NamedFiles()] * 70_000)),
        "files": pb.Event(
            preview=pb.Preview(pictures=[pb.NamedFiles(files=[pb.Block()] * 7000)] * 10)
        ),
        "rows": rows,
    }


WRONG = _wrong_events()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_event_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        decode_event(WRONG[name], inline)


@pytest.mark.parametrize("name", ["tensors", "pictures"])
def test_the_spans_of_an_endless_event_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        list(spans(WRONG[name]))


def test_a_call_whose_memory_was_not_lent_is_refused() -> None:
    message = encode_call(MANY, Memory(spans_bytes(MANY)).writer)
    with pytest.raises(ProtocolError, match="not lent"):
        decode_call(message, inline)


@pytest.mark.parametrize(
    ("kind", "data", "decode"),
    [
        (pb.Call, encode_call(CALL, Writer()), lambda item: decode_call(item, inline)),
        (pb.Event, encode_event(PREVIEW, Writer()), lambda item: decode_event(item, inline)),
        (pb.Event, encode_event(RESULT, Writer()), lambda item: decode_event(item, inline)),
        (pb.Error, encode_error(InvalidRequest.field("a", "b")), decode_error),
    ],
)
def test_damaged_messages_are_refused_or_mean_something(
    kind: type[Message], data: Message, decode: Callable[[Any], Any]
) -> None:
    chance, whole = random.Random(0), data.SerializeToString()
    refused = 0
    for _ in range(1500):
        try:
            decode(kind.FromString(damaged(whole, chance)))
        except (ProtocolError, DecodeError):
            refused += 1
    assert refused > 100


def _classes(root: type[InterpretError]) -> list[type[InterpretError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


KNOWN = [kind for kind in _classes(InterpretError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KNOWN)
def test_an_error_survives(kind: type[InterpretError]) -> None:
    decoded = decode_error(_sent(encode_error(kind("epsilon: it is ½"))))
    assert type(decoded) is kind
    assert (decoded.message, str(decoded)) == ("epsilon: it is ½", "epsilon: it is ½")
    assert decoded.violations == ()


def test_an_error_keeps_its_violations_and_when_to_retry() -> None:
    violations = (Violation("params.steps", "too many"), Violation("inputs", ""))
    decoded = decode_error(_sent(encode_error(NotFound("two", violations=violations))))
    assert decoded.violations == violations
    overloaded = decode_error(_sent(encode_error(Overloaded("later", retry_after=7.5))))
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after == 7.5


def test_an_error_of_an_unknown_class_becomes_the_closest_known_one() -> None:
    class WrongColour(InvalidRequest):
        """Not of the server's own."""

    assert type(decode_error(encode_error(WrongColour("red")))) is InvalidRequest
    for name in ("WrongColour", "", "Violation", "dataclass", "__name__", "Sequence"):
        assert type(decode_error(pb.Error(type=name, message="red"))) is InterpretError


def test_a_hostile_error_is_cut_short() -> None:
    violation = pb.Violation(field="f" * 9999, description="d" * 9999)
    hostile = pb.Error(type="NotFound", message="m" * 10**6, violations=[violation] * 9999)
    decoded = decode_error(hostile)
    assert len(decoded.message) == 4000
    assert len(decoded.violations) == 64
    assert len(decoded.violations[0].description) == 4000


@pytest.mark.parametrize("wait", [math.nan, math.inf, -1.0])
def test_a_hostile_time_to_retry_is_ignored(wait: float) -> None:
    decoded = decode_error(pb.Error(type="Overloaded", message="m", retry_after=wait))
    assert isinstance(decoded, Overloaded)
    assert decoded.retry_after == Overloaded("").retry_after


def test_an_error_with_text_that_is_not_unicode_is_told_all_the_same() -> None:
    assert decode_error(_sent(encode_error(NotFound("no \ud800")))).message == "no \\ud800"


def test_messages_need_no_torch() -> None:
    code = (
        "import sys; from interpret_server.engine.workers import channel, codec, segments;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Frames and descriptors over a socket: whole, in order, bounded, and never leaked."""

import array
import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message

from interpret_server.engine.workers import protocol_pb2 as pb
from interpret_server.engine.workers.channel import (
    MAX_DESCRIPTORS,
    Channel,
    receive_message,
    send_message,
)
from interpret_server.engine.workers.errors import ProtocolError

SECONDS = 20.0


def _log(text: str) -> pb.FromWorker:
    return pb.FromWorker(log=pb.Log(text=text))


def _frame(message: Message) -> bytes:
    data = message.SerializeToString()
    return len(data).to_bytes(4, "little") + data


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


class Side:
    """One side of a channel, with what it received."""

    def __init__(self, sock: socket.socket, **options: Any) -> None:
        self.texts: list[str] = []
        self.descriptors: list[list[int]] = []
        self.ends: list[Exception | None] = []
        self._changed = asyncio.Event()
        self.channel = Channel(sock, pb.FromWorker, self._receive, self._closed, **options)

    def _receive(self, message: pb.FromWorker, descriptors: list[int]) -> None:
        self.texts.append(message.log.text)
        self.descriptors.append(descriptors)
        self._changed.set()

    def _closed(self, error: Exception | None) -> None:
        self.ends.append(error)
        self._changed.set()

    async def received(self, count: int) -> list[str]:
        async with asyncio.timeout(SECONDS):
            while len(self.texts) < count:
                assert not self.ends
                self._changed.clear()
                await self._changed.wait()
        return self.texts

    async def ended(self) -> Exception | None:
        async with asyncio.timeout(SECONDS):
            while not self.ends:
                self._changed.clear()
                await self._changed.wait()
        assert len(self.ends) == 1
        return self.ends[0]


async def test_messages_arrive_whole_and_in_order(pair: Any) -> None:
    chance = random.Random(0)
    sent = [chance.choice("xyzä") * chance.choice([0, 1, 100, 5000, 300_000]) for _ in range(200)]
    left, right = map(Side, pair)
    for text in sent:
        left.channel.send(_log(text))
        right.channel.send(_log(text[::-1]))
    assert await right.received(len(sent)) == sent
    assert await left.received(len(sent)) == [text[::-1] for text in sent]
    left.channel.close()
    assert await right.ended() is None
    assert not left.ends


async def test_an_empty_message_arrives(pair: Any) -> None:
    left, right = map(Side, pair)
    left.channel.send(pb.FromWorker())
    left.channel.send(_log("after"))
    assert await right.received(2) == ["", "after"]
    left.channel.close()
    right.channel.close()


async def test_descriptors_arrive_with_their_own_message(pair: Any) -> None:
    """However the frames are cut, and after the sender has closed its own copies."""
    before = _descriptors()
    chance = random.Random(1)
    left, right = map(Side, pair)
    inodes = []
    for number in range(60):
        files = [os.memfd_create("x") for _ in range(chance.choice([0, 0, 1, 2, MAX_DESCRIPTORS]))]
        inodes.append([os.fstat(descriptor).st_ino for descriptor in files])
        left.channel.send(_log("x" * chance.choice([0, 10, 400_000])), files)
        for descriptor in files:
            os.close(descriptor)
        if number % 10 == 0:
            await asyncio.sleep(0)
    await right.received(60)
    arrived = right.descriptors
    assert [[os.fstat(item).st_ino for item in group] for group in arrived] == inodes
    assert not any(os.get_inheritable(item) for group in arrived for item in group)
    for group in arrived:
        for descriptor in group:
            os.close(descriptor)
    assert _descriptors() == before
    left.channel.close()
    right.channel.close()


async def test_sending_never_waits_and_drained_tells_when_all_has_left(pair: Any) -> None:
    ours, theirs = pair
    left = Side(ours)
    text = "x" * 1_000_000
    for _ in range(20):
        left.channel.send(_log(text))
    waiting = asyncio.ensure_future(left.channel.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    right = Side(theirs)
    await asyncio.wait_for(waiting, SECONDS)
    await asyncio.wait_for(left.channel.drained(), SECONDS)
    assert await right.received(20) == [text] * 20
    left.channel.close()
    right.channel.close()


async def test_closing_drops_what_has_not_left_and_leaks_nothing(pair: Any, pipe: Any) -> None:
    before = _descriptors()
    ours, _ = pair
    left = Side(ours)
    for _ in range(20):
        left.channel.send(_log("x" * 1_000_000), pipe)
    assert _descriptors() > before
    waiting = asyncio.ensure_future(left.channel.drained())
    await asyncio.sleep(0)
    left.channel.close()
    left.channel.close()
    await asyncio.wait_for(waiting, SECONDS)
    left.channel.send(_log("late"), pipe)
    assert _descriptors() == before - 1  # its socket
    assert not left.ends


async def test_what_arrived_before_the_end_is_received(pair: Any) -> None:
    ours, theirs = pair
    send_message(theirs, _log("last words"))
    theirs.close()
    left = Side(ours)
    left.channel.send(_log("too late"))
    assert await left.ended() is None
    assert left.texts == ["last words"]


async def test_a_side_that_dies_with_messages_unread_is_an_end(pair: Any) -> None:
    ours, theirs = pair
    left = Side(ours)
    left.channel.send(_log("unread"))
    theirs.close()
    assert await left.ended() is None


async def test_a_side_that_hears_nothing_more_is_an_end(pair: Any) -> None:
    ours, theirs = pair
    left = Side(ours)
    send_message(theirs, _log("one"))
    theirs.shutdown(socket.SHUT_RD)
    left.channel.send(_log("two"))
    assert await left.ended() is None
    assert left.texts == ["one"]


async def test_a_side_that_floods_and_hears_nothing_is_cut_off(pair: Any) -> None:
    ours, theirs = pair
    theirs.shutdown(socket.SHUT_RD)
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                theirs.send(_frame(_log("x")) * 100)

    thread = threading.Thread(target=flood)
    thread.start()
    left = Side(ours)
    await left.received(1000)
    left.channel.send(_log("nobody hears"))
    assert await left.ended() is None
    stop.set()
    thread.join()


async def test_an_end_while_much_is_unsent_is_told_once(pair: Any) -> None:
    ours, theirs = pair
    left = Side(ours)
    for _ in range(20):
        left.channel.send(_log("x" * 1_000_000))
    waiting = asyncio.ensure_future(left.channel.drained())
    theirs.recv(1000)
    theirs.close()
    assert await left.ended() is None
    await asyncio.wait_for(waiting, SECONDS)


GARBAGE = {
    "too long": (1001).to_bytes(4, "little"),
    "as long as it gets": b"\xff\xff\xff\xff",
    "no message": (3).to_bytes(4, "little") + b"\xff\xff\xff",
    "not Unicode": _frame(_log("abc")).replace(b"abc", b"\xff\xff\xff"),
    "cut header": b"\1\0",
    "cut body": _frame(_log("abcdef"))[:-1],
    "no body": _frame(_log("abcdef"))[:4],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_the_channel_with_an_error(pair: Any, pipe: Any, name: str) -> None:
    before = _descriptors()
    ours, theirs = pair
    left = Side(ours, max_bytes=1000)
    send_message(theirs, _log("good"))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipe))
    theirs.sendmsg([GARBAGE[name]], [rights])
    theirs.close()
    assert isinstance(await left.ended(), ProtocolError)
    assert left.texts == ["good"]
    assert _descriptors() == before - 2  # both sockets
    left.channel.send(_log("after"))


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_an_error_where_reading_blocks(pair: Any, pipe: Any, name: str) -> None:
    before = _descriptors()
    ours, theirs = pair
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipe))
    theirs.sendmsg([GARBAGE[name]], [rights])
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError):
        receive_message(ours, pb.FromWorker, max_bytes=1000)
    assert _descriptors() == before


async def test_too_many_descriptors_end_the_channel(pair: Any) -> None:
    ours, theirs = pair
    files = [os.memfd_create("x") for _ in range(MAX_DESCRIPTORS + 1)]
    before = _descriptors()
    left = Side(ours)
    send_message(theirs, _log("much"), files)
    assert isinstance(await left.ended(), ProtocolError)
    assert _descriptors() == before - 1
    for descriptor in files:
        os.close(descriptor)


async def test_descriptors_inside_a_frame_are_not_taken(pair: Any, pipe: Any) -> None:
    ours, theirs = pair
    before = _descriptors()
    left = Side(ours)
    data = _frame(_log("abcdef"))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipe))
    theirs.send(data[:6])
    theirs.sendmsg([data[6:]], [rights])
    assert await left.received(1) == ["abcdef"]
    assert left.descriptors == [[]]
    assert _descriptors() == before
    theirs.send(data[:2])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    theirs.sendmsg([data[2:]], [rights])
    assert isinstance(await left.ended(), ProtocolError)
    assert _descriptors() == before - 1


async def test_frames_that_come_byte_by_byte_are_put_together(pair: Any, pipe: Any) -> None:
    ours, theirs = pair
    left = Side(ours)
    for text, descriptors in (("one", (pipe[0],)), ("two", ())):
        for position, byte in enumerate(_frame(_log(text))):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            theirs.sendmsg([bytes([byte])], rights if descriptors and not position else [])
            await asyncio.sleep(0)
    assert await left.received(2) == ["one", "two"]
    assert list(map(len, left.descriptors)) == [1, 0]
    os.close(left.descriptors[0][0])
    left.channel.close()


async def test_random_bytes_end_the_channel_or_are_messages(pair: Any) -> None:
    chance, ended = random.Random(0), 0
    before = _descriptors()
    for _ in range(200):
        ours, theirs = socket.socketpair()
        left = Side(ours, max_bytes=1000)
        data = bytearray(_frame(_log("abc")) * 3)
        for _ in range(chance.randint(0, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        theirs.send(data)
        theirs.close()
        ended += isinstance(await left.ended(), ProtocolError)
    assert 50 < ended < 200
    assert _descriptors() == before


async def test_a_receiver_that_fails_ends_the_channel_with_its_error(pair: Any) -> None:
    ours, theirs = pair
    ends: asyncio.Queue[Exception | None] = asyncio.Queue()

    def refuse(message: pb.FromWorker, descriptors: list[int]) -> None:
        raise BrokenPipeError(message.log.text)

    channel = Channel(ours, pb.FromWorker, refuse, ends.put_nowait)
    for text in ("first", "second"):
        send_message(theirs, _log(text))
    error = await asyncio.wait_for(ends.get(), SECONDS)
    assert isinstance(error, BrokenPipeError)
    assert str(error) == "first"
    assert ends.empty()
    channel.close()


async def test_a_receiver_may_close_the_channel(pair: Any) -> None:
    ours, theirs = pair
    texts: list[str] = []
    closed = asyncio.Event()

    def receive(message: pb.FromWorker, descriptors: list[int]) -> None:
        texts.append(message.log.text)
        channel.close()
        closed.set()

    def fail(error: Exception | None) -> None:
        raise AssertionError("told of its own close")

    channel = Channel(ours, pb.FromWorker, receive, fail)
    for text in ("first", "second"):
        send_message(theirs, _log(text))
    await asyncio.wait_for(closed.wait(), SECONDS)
    await asyncio.sleep(0)
    assert texts == ["first"]


async def test_a_flood_leaves_turns_to_others(pair: Any) -> None:
    """Everything waits in the socket already, and yet another callback runs in between."""
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while count < 2000:
            theirs.send(_frame(_log("x")))
            count += 1
    left = Side(ours)
    await left.received(1)
    assert len(left.texts) < count
    await left.received(count)
    left.channel.close()


def test_blocking_sides_exchange_messages_of_any_size(pair: Any, pipe: Any) -> None:
    ours, theirs = pair
    texts = ["", "x" * 3_000_000, "y"]

    def send() -> None:
        for text in texts:
            send_message(theirs, _log(text), pipe if text == "y" else ())
        theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    for text in texts:
        received = receive_message(ours, pb.FromWorker)
        assert received is not None
        message, descriptors = received
        assert message.log.text == text
        assert len(descriptors) == (2 if text == "y" else 0)
        for descriptor in descriptors:
            os.close(descriptor)
    assert receive_message(ours, pb.FromWorker) is None
    thread.join()


def test_sending_to_nobody_is_an_error_where_it_blocks(pair: Any) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        send_message(ours, _log("x"))

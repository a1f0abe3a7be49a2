"""The front end's end of a worker: memory is one call's at a time, whatever the worker does."""

import asyncio
import dataclasses
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from worker_values import PREVIEW, RESULT, array

from interpret_server.engine.api import Array, Call, Event, Preview, Result
from interpret_server.engine.workers import connection as connections
from interpret_server.engine.workers import protocol_pb2 as pb
from interpret_server.engine.workers.blocks import Writer
from interpret_server.engine.workers.channel import Channel
from interpret_server.engine.workers.codec import decode_call, encode_event
from interpret_server.engine.workers.connection import Connection
from interpret_server.engine.workers.output import Output
from interpret_server.engine.workers.segments import Mapped

SECONDS = 20.0
LARGE = array((1 << 19,))  # 2 MiB: written and read by helper threads
CALL = Call("net", "saliency", inputs=LARGE)


class FakeWorker:
    """The other end: keeps what it is sent, sends what it is told."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        reading, self._printing = os.pipe()
        self.killed = asyncio.Event()
        self.connection = Connection("net", ours, Output(reading), self.killed.set)
        self.mapped = Mapped()
        self.runs: dict[int, Call] = {}
        self.lent: dict[int, list[int]] = {}  # for results
        self.held: dict[int, set[int]] = {}  # for anything
        self.cancelled: list[int] = []
        self._changed = asyncio.Event()
        self.channel = Channel(theirs, pb.ToWorker, self._receive, lambda _: None)

    def _receive(self, message: pb.ToWorker, descriptors: list[int]) -> None:
        kind = message.WhichOneof("message")
        for lend in [message.lend] if kind == "lend" else message.run.lends:
            self.mapped.learn(lend.segment, descriptors, lend.size)
            self.held.setdefault(lend.call, set()).add(lend.segment)
            if lend.for_result:
                self.lent.setdefault(lend.call, []).append(lend.segment)
        assert not descriptors
        if kind == "run":
            self.runs[message.run.call] = decode_call(message.run.request, self.mapped.block)
        elif kind == "cancel":
            self.cancelled.append(message.cancel.call)
        elif kind == "forget":
            self.mapped.drop(message.forget.segment)
        self._changed.set()

    async def until(self, happened: Callable[[], Any]) -> None:
        async with asyncio.timeout(SECONDS):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    def send(self, number: int, event: Event, segment: int = 0) -> None:
        whole = self.mapped.whole(segment) if segment else None
        message = encode_event(event, Writer(whole, segment))
        message.call = number
        self.channel.send(pb.FromWorker(event=message))

    def close(self) -> None:
        self.channel.close()
        os.close(self._printing)
        self.mapped.close()
        self.connection.ended(0)


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    worker = FakeWorker()
    yield worker
    worker.close()


async def _finished(connection: Connection, call: Call = CALL) -> Event:
    *_, last = [event async for event in connection.run(call, None)]
    return last


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not happened():  # noqa: ASYNC110  # a thread makes it so
            await asyncio.sleep(0.001)


def _with_tensor(data: Array) -> Result:
    return dataclasses.replace(RESULT, tensors={"attributions": data})


async def test_a_call_and_its_result_go_through_shared_memory(worker: FakeWorker) -> None:
    running = asyncio.create_task(_finished(worker.connection))
    await worker.until(lambda: worker.runs)
    ((number, call),) = worker.runs.items()
    assert call == CALL
    answer = _with_tensor(array((1 << 19,), seed=7))
    worker.send(number, answer, worker.lent[number][0])
    assert await asyncio.wait_for(running, SECONDS) == answer
    assert worker.connection.calls == 0


async def test_memory_is_not_free_while_a_cancelled_call_is_still_written(
    worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, proceed = threading.Event(), threading.Event()
    encode = connections.encode_call
    written: list[int] = []

    def slow(call: Call, put: Writer) -> pb.Call:
        written.append(put.segment)
        entered.set()
        assert proceed.wait(SECONDS)
        return encode(call, put)

    monkeypatch.setattr(connections, "encode_call", slow)
    running = asyncio.create_task(_finished(worker.connection))
    await _until(entered.is_set)
    monkeypatch.setattr(connections, "encode_call", encode)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    other = asyncio.create_task(_finished(worker.connection, dataclasses.replace(CALL)))
    await worker.until(lambda: worker.runs)
    proceed.set()
    await _until(lambda: worker.connection.calls == 1)
    ((number, call),) = worker.runs.items()
    assert not worker.held[number] & set(written)
    assert call == CALL
    worker.send(number, RESULT)
    assert await asyncio.wait_for(other, SECONDS) == RESULT


async def test_a_preview_that_its_result_overtakes_frees_no_memory_of_another_call(
    worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, proceed, left = threading.Event(), threading.Event(), threading.Event()
    decode = connections.decode_event

    def slow(message: pb.Event, get: Any) -> Event:
        if message.WhichOneof("value") != "preview":
            return decode(message, get)
        entered.set()
        assert proceed.wait(SECONDS)
        try:
            return decode(message, get)
        finally:
            left.set()

    monkeypatch.setattr(connections, "decode_event", slow)
    first = asyncio.create_task(_finished(worker.connection))
    await worker.until(lambda: worker.runs)
    (number,) = worker.runs
    preview = dataclasses.replace(PREVIEW, tensors={"images": LARGE})
    worker.send(number, preview, worker.lent[number][0])
    await _until(entered.is_set)
    worker.send(number, RESULT)
    assert await asyncio.wait_for(first, SECONDS) == RESULT

    calls = [asyncio.create_task(_finished(worker.connection))]
    await worker.until(lambda: len(worker.runs) == 2)
    proceed.set()
    await _until(left.is_set)
    await asyncio.sleep(0.01)  # the thread's outcome reaches the loop
    calls.append(asyncio.create_task(_finished(worker.connection)))
    await worker.until(lambda: len(worker.runs) == 3)
    second, third = list(worker.runs)[1:]
    assert not worker.held[second] & worker.held[third]
    for other in (second, third):
        worker.send(other, RESULT)
    await asyncio.wait_for(asyncio.gather(*calls), SECONDS)


async def test_a_worker_that_needs_without_end_is_killed(worker: FakeWorker) -> None:
    running = asyncio.create_task(_finished(worker.connection, Call("net", "saliency")))
    await worker.until(lambda: worker.runs)
    (number,) = worker.runs
    for _ in range(100):
        worker.channel.send(pb.FromWorker(need=pb.Need(call=number, bytes=1)))
    await asyncio.wait_for(worker.killed.wait(), SECONDS)
    assert 0 < len(worker.lent[number]) < 100
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_result_for_another_call_is_ignored(worker: FakeWorker) -> None:
    running = asyncio.create_task(_finished(worker.connection))
    await worker.until(lambda: worker.runs)
    (number,) = worker.runs
    worker.send(number + 1, dataclasses.replace(RESULT, metrics={"wrong": (1.0,)}))
    worker.send(number, RESULT)
    assert await asyncio.wait_for(running, SECONDS) == RESULT


async def test_memory_that_another_call_was_lent_is_refused(worker: FakeWorker) -> None:
    calls = [asyncio.create_task(_finished(worker.connection)) for _ in range(2)]
    await worker.until(lambda: len(worker.runs) == 2)
    first, second = worker.runs
    worker.send(first, _with_tensor(array((8192,))), worker.lent[second][0])
    await asyncio.wait_for(worker.killed.wait(), SECONDS)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_previews_give_their_memory_back(worker: FakeWorker) -> None:
    seen = []

    async def run() -> None:
        async for event in worker.connection.run(CALL, None):
            seen.append(event)
            turn.set()

    turn = asyncio.Event()
    running = asyncio.create_task(run())
    await worker.until(lambda: worker.runs)
    (number,) = worker.runs
    used = set()
    for done in range(5):
        if not worker.lent[number]:
            worker.channel.send(pb.FromWorker(need=pb.Need(call=number, bytes=LARGE_BYTES)))
            await worker.until(lambda: worker.lent[number])
        segment = worker.lent[number].pop()
        used.add(segment)
        turn.clear()
        worker.send(number, Preview(done, 9, {"images": LARGE}), segment)
        await asyncio.wait_for(turn.wait(), SECONDS)
    worker.send(number, RESULT)
    await asyncio.wait_for(running, SECONDS)
    assert [event.done for event in seen[:-1]] == list(range(5))
    assert len(used) == 1


LARGE_BYTES = len(LARGE.data)

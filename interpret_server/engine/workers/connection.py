"""The front end's end of one worker: its messages, the memory lent to it, its calls in flight."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import DeadlineExceeded, InterpretError, Overloaded, Unavailable
from ...models.manifest import Manifest
from ..api import Call, Event, ModelInfo, Preview, Progress, Result
from ..mailbox import Mailbox
from . import protocol_pb2 as pb
from .blocks import Writer
from .channel import Channel
from .codec import decode_error, decode_event, encode_call, spans, spans_bytes
from .documents import manifest_to_json, model_from_json
from .errors import ProtocolError
from .output import Output
from .segments import Reader, Segment, SegmentPool

_logger = logging.getLogger(__name__)
_LARGE = 1 << 20  # more bytes than this are copied off the event loop
_MOST_LENT = 64  # segments that one call may hold, previews on their way included
_MOST_SHARED = 4 << 30  # bytes of shared memory that one worker may hold
_LOG_LINES, _LOG_SECONDS = 200, 10.0  # that one worker may add to the server's log


@dataclass
class _InFlight:
    """A call that the worker has not ended yet, be its caller gone or not."""

    mailbox: Mailbox[Result]
    segments: dict[int, Segment] = field(default_factory=dict)
    lends: list[pb.Lend] = field(default_factory=list)  # that go with the request
    writing: asyncio.Future[pb.Call] | None = None  # a thread that fills a segment


class Connection:
    """Loads a model in a worker and runs calls on it.

    Args:
        name: of the model, for messages.
        sock: connected to the worker; owned from now on.
        output: what the worker prints.
        kill: ends the process.
    """

    def __init__(
        self, name: str, sock: socket.socket, output: Output, kill: Callable[[], None]
    ) -> None:
        self.name, self.output, self._kill = name, output, kill
        self.process_id: int | None = None
        self.begun = 0  # calls sent so far
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._why = ""
        self._dying = False  # the other end of the channel is closed
        self._pool = SegmentPool()
        self._numbers = count(1)
        self._calls: dict[int, _InFlight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loaded: asyncio.Future[ModelInfo] | None = None
        self._pongs: dict[int, asyncio.Future[pb.Pong | None]] = {}
        self._lines, self._since = 0, 0.0
        self._channel: Channel[pb.FromWorker] = Channel(
            sock, pb.FromWorker, self._receive, self._hung_up
        )

    @property
    def calls(self) -> int:
        """How many calls it has not ended."""
        return len(self._calls)

    @property
    def usable(self) -> bool:
        """Whether calls can be sent: the process has not ended, nor is it about to."""
        return not (self._why or self._dying or self.lost.done())

    async def load(
        self, name: str, path: Path, manifest: Manifest, samples: Path | None
    ) -> ModelInfo:
        """Load the worker's model.

        Raises:
            InterpretError: as the worker's, or Unavailable if it is lost meanwhile.
        """
        self._loaded = asyncio.get_running_loop().create_future()
        message = pb.Load(
            name=name,
            path=str(path),
            manifest_json=manifest_to_json(manifest),
            samples_path="" if samples is None else str(samples),
        )
        self._channel.send(pb.ToWorker(load=message))
        either: set[asyncio.Future[Any]] = {self._loaded, self.lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._loaded.done():
            raise Unavailable(self.lost.result())
        return self._loaded.result()

    async def run(self, call: Call, deadline: float | None) -> AsyncGenerator[Event, None]:
        """Progress and previews in order, then exactly one `Result`; closing cancels the call.

        Args:
            call: for the worker's model.
            deadline: in seconds of `time.monotonic`, which is the event loop's time too.

        Raises:
            InterpretError: as the worker's, or Unavailable if it is lost meanwhile.
        """
        number, mailbox = next(self._numbers), Mailbox[Result](asyncio.get_running_loop())
        flight = _InFlight(mailbox)
        self._calls[number] = flight
        sent = False
        try:
            message = await self._encode(call, number, flight)
            if deadline is not None:
                message.timeout = max(0.0, deadline - time.monotonic())
            self._check_alive()
            self._send(number, message, flight)
            sent = True
            self.begun += 1
            while True:
                try:
                    event = await mailbox.next(deadline)
                except TimeoutError:
                    raise DeadlineExceeded(
                        "the deadline passed before the answer was ready"
                    ) from None
                yield event
                if isinstance(event, Result):
                    return
        finally:
            if not sent:
                self._give_up(number, flight)
            elif number in self._calls:
                self._channel.send(pb.ToWorker(cancel=pb.Cancel(call=number)))

    async def ping(self, patience: float) -> pb.Pong | None:
        """How the worker does; None if it does not answer within `patience` seconds."""
        number = next(self._numbers)
        future: asyncio.Future[pb.Pong | None] = asyncio.get_running_loop().create_future()
        self._pongs[number] = future
        self._channel.send(pb.ToWorker(ping=pb.Ping(id=number)))
        try:
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            return None
        finally:
            self._pongs.pop(number, None)

    def kill(self, why: str) -> None:
        """End the process; calls in flight fail with `why`."""
        self._why = self._why or why
        self._kill()

    async def close(self, grace: float) -> None:
        """Let running calls finish for `grace` seconds, then end the process."""
        self._why = self._why or "the model is unloaded"
        if not self.lost.done():
            self._channel.send(pb.ToWorker(close=pb.Close(grace=grace)))
            await asyncio.wait({self.lost}, timeout=grace + 1.0)
        if not self.lost.done():
            self._kill()
            await asyncio.wait({self.lost}, timeout=5.0)

    def ended(self, status: int) -> None:
        """The process has ended, with an exit status or minus a signal's number."""
        if self.lost.done():
            return
        why = self._why or _cause(self.name, status)
        said = self.output.tail()
        self.output.close()
        if not self._why:
            _logger.error("%s%s", why, f"; it printed: {said[-2000:]}" if said else "")
        self.lost.set_result(why)
        self._channel.close()
        for flight in self._calls.values():
            flight.mailbox.settle(Unavailable(why))
        for number in tuple(self._calls):
            self._finish(number)
        for future in self._pongs.values():
            if not future.done():
                future.set_result(None)
        self._pool.close()

    async def _encode(self, call: Call, number: int, flight: _InFlight) -> pb.Call:
        size = spans_bytes(call)
        if not size:
            return encode_call(call, Writer())
        segment, room = self._acquire(size, flight), self._acquire(size, flight)
        flight.lends = [
            _lend(number, segment, for_result=False),
            _lend(number, room, for_result=True),
        ]
        writer = Writer(segment.view, segment.id)
        if size <= _LARGE:
            return encode_call(call, writer)
        loop = asyncio.get_running_loop()
        flight.writing = loop.run_in_executor(None, encode_call, call, writer)
        return await asyncio.shield(flight.writing)

    def _acquire(self, size: int, flight: _InFlight) -> Segment:
        if size > _MOST_SHARED - self._pool.used_bytes:
            raise Overloaded(
                f"the calls of {self.name} hold too much memory; try again later, or send less"
            )
        segment = self._pool.acquire(size)
        flight.segments[segment.id] = segment
        return segment

    def _send(self, number: int, message: pb.Call, flight: _InFlight) -> None:
        run = pb.Run(call=number, request=message, lends=flight.lends)
        self._share(pb.ToWorker(run=run), *flight.segments.values())

    def _share(self, message: pb.ToWorker, *segments: Segment) -> None:
        """Send a message and the descriptors of segments that the worker does not know yet."""
        self._channel.send(message, [item.fd for item in segments if not item.shared])
        for segment in segments:
            segment.shared = True

    def _receive(self, message: pb.FromWorker, descriptors: list[int]) -> None:
        for descriptor in descriptors:  # a worker has none to give
            os.close(descriptor)
        try:
            self._handle(message)
        except ProtocolError as error:
            self.kill(f"the worker of {self.name} sent what no worker sends: {error}")

    def _handle(self, message: pb.FromWorker) -> None:
        kind = message.WhichOneof("message")
        if kind == "event":
            self._event(message.event)
        elif kind == "failed":
            self._failed(message.failed)
        elif kind == "need":
            self._need(message.need)
        elif kind == "pong":
            future = self._pongs.get(message.pong.id)
            if future is not None and not future.done():
                future.set_result(message.pong)
        elif kind == "loaded":
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(model_from_json(message.loaded.model_info_json))
        elif kind == "log":
            self._log(message.log)

    def _event(self, message: pb.Event) -> None:
        flight = self._calls.get(message.call)
        if flight is None:
            return
        size = sum(span.length for span in spans(message))
        if size <= _LARGE:
            self._deliver(message, flight, decode_event(message, Reader(flight.segments)))
            return
        task = asyncio.create_task(self._deliver_later(message, flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver_later(self, message: pb.Event, flight: _InFlight) -> None:
        try:
            event = await asyncio.to_thread(decode_event, message, Reader(flight.segments))
        except ProtocolError as error:
            self.kill(f"the worker of {self.name} sent what no worker sends: {error}")
            return
        if message.call in self._calls:  # a preview may be overtaken by the result
            self._deliver(message, flight, event)

    def _deliver(self, message: pb.Event, flight: _InFlight, event: Event) -> None:
        if isinstance(event, Progress):
            flight.mailbox.progress(event)
        elif isinstance(event, Preview):
            flight.mailbox.preview(event)
        else:
            flight.mailbox.settle(event)
            self._finish(message.call)
            return
        for number in {span.segment for span in spans(message)}:  # it may be lent again
            if (segment := flight.segments.pop(number, None)) is not None:
                self._release(segment)

    def _failed(self, message: pb.Failed) -> None:
        error = decode_error(message.error)
        if not message.call:
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_exception(error)
            return
        flight = self._calls.get(message.call)
        if flight is not None:
            flight.mailbox.settle(error)
            self._finish(message.call)

    def _need(self, message: pb.Need) -> None:
        flight = self._calls.get(message.call)
        if flight is None:
            return
        if len(flight.segments) >= _MOST_LENT:
            raise ProtocolError(f"a call that needs more than {_MOST_LENT} segments")
        try:
            segment = self._acquire(message.bytes, flight)
        except InterpretError as error:
            flight.mailbox.settle(error)
            self._channel.send(pb.ToWorker(cancel=pb.Cancel(call=message.call)))
            return
        self._share(pb.ToWorker(lend=_lend(message.call, segment, for_result=True)), segment)

    def _give_up(self, number: int, flight: _InFlight) -> None:
        """End a call that was not sent, once nobody writes into its memory any more."""

        def finish(writing: asyncio.Future[pb.Call]) -> None:
            writing.exception()  # its caller is gone
            self._finish(number)

        if flight.writing is None or flight.writing.done():
            self._finish(number)
        else:
            flight.writing.add_done_callback(finish)

    def _finish(self, number: int) -> None:
        """The worker uses nothing of a call any more."""
        flight = self._calls.pop(number, None)
        while flight is not None and flight.segments:
            self._release(flight.segments.popitem()[1])

    def _release(self, segment: Segment) -> None:
        for gone in self._pool.release(segment):
            self._channel.send(pb.ToWorker(forget=pb.Forget(segment=gone)))

    def _log(self, message: pb.Log) -> None:
        now = time.monotonic()
        if now - self._since > _LOG_SECONDS:
            self._lines, self._since = 0, now
        self._lines += 1
        if self._lines <= _LOG_LINES:
            logger = logging.getLogger(f"interpret_server.worker.{self.name}")
            logger.log(min(message.level, logging.ERROR), "%s", message.text[:20_000])

    def _check_alive(self) -> None:
        if self.lost.done():
            raise Unavailable(self.lost.result())

    def _hung_up(self, error: Exception | None) -> None:
        """The channel is closed; the process ends or is ended, which the nursery then tells."""
        self._dying = True
        if not self.lost.done():
            if error is not None:
                self._why = self._why or (
                    f"the worker of {self.name} sent what no worker sends: {error}"
                )
            self._kill()


def _lend(number: int, segment: Segment, *, for_result: bool) -> pb.Lend:
    return pb.Lend(call=number, segment=segment.id, size=segment.size, for_result=for_result)


def _cause(name: str, status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"the worker of {name} died of {signal.Signals(-status).name}; try again"
    return f"the worker of {name} ended with status {status}; try again"

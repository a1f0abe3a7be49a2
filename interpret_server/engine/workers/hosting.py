"""A worker process: one model in a `LocalWorker`, driven by messages from the front end."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import Cancelled, InterpretError
from ...models.execution import Execution
from ...models.loading import load_classifier
from ...registry import Registry
from .. import sandbox
from ..api import Call, Event, Result
from ..failure import internal_error
from ..local import LocalWorker
from . import protocol_pb2 as pb
from .blocks import Writer
from .channel import Channel
from .codec import decode_call, encode_error, encode_event, spans_bytes
from .documents import manifest_from_json, model_to_json
from .segments import Mapped

_CLOSED = 0
_UNCONFINED = 71  # the exit status of a worker that could not be confined


def host(spawn: pb.Spawn, channel: int, output: int, registry: Registry) -> int:
    """Serve until the front end hangs up; in a process that was forked for it.

    Args:
        spawn: the worker's limits.
        channel, output: descriptors of the socket to the front end, and of a pipe for what the
            model prints.
        registry: the plugins.

    Returns:
        The exit status.
    """
    _redirect(output)
    sandbox.close_inherited({0, 1, 2, channel})
    sandbox.clear_environment()
    loop = asyncio.new_event_loop()  # needs a socket pair, which the sandbox forbids
    asyncio.set_event_loop(loop)
    try:
        if spawn.confined:
            sandbox.confine(_policy(spawn))
    except sandbox.SandboxError as error:
        sys.stdout.write(f"{error}\n")
        return _UNCONFINED
    if spawn.device.startswith("cuda") and spawn.gpu_memory_fraction:
        fraction = spawn.gpu_memory_fraction
        torch.cuda.set_per_process_memory_fraction(fraction, torch.device(spawn.device))
    with socket.socket(fileno=channel) as sock:
        loop.run_until_complete(_Host(spawn, registry).serve(sock))
    return _CLOSED


def _policy(spawn: pb.Spawn) -> sandbox.Policy:
    return sandbox.Policy(
        read=tuple(map(Path, spawn.read)),
        devices=spawn.device.startswith("cuda"),
        memory_bytes=spawn.memory_bytes or None,
    )


def _redirect(output: int) -> None:
    """Let everything that is printed go to the front end's pipe."""
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, null), (1, output), (2, output)):
        os.dup2(source, descriptor)
    os.close(null)
    os.close(output)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115


class _Host:
    def __init__(self, spawn: pb.Spawn, registry: Registry) -> None:
        self._worker = LocalWorker(
            registry,
            device=spawn.device,
            max_queue=spawn.max_queue,
            max_queue_bytes=spawn.max_queue_bytes,
            max_batch=spawn.max_batch,
            max_step=spawn.max_step,
            loader=partial(load_classifier, execution=Execution(spawn.execution)),
        )
        self._mapped = Mapped()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._newest = 0  # call; the front end counts upwards
        self._lent: dict[int, list[int]] = {}  # call -> segments for its results
        self._needs: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket) -> None:
        """Until the front end hangs up or asks to close."""
        self._done = asyncio.Event()
        self._channel: Channel[pb.ToWorker] = Channel(
            sock, pb.ToWorker, self._receive, lambda _: self._done.set()
        )
        _send_logs(self._channel)
        await self._done.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._channel.drained()
        self._channel.close()

    def _receive(self, message: pb.ToWorker, descriptors: list[int]) -> None:
        kind = message.WhichOneof("message")
        if kind == "run":
            self._newest = message.run.call
            self._calls[message.run.call] = asyncio.create_task(
                self._run(message.run.call, message.run.request)
            )
            self._take(message.run.lends, descriptors)
        elif kind == "lend":
            self._take([message.lend], descriptors)
        elif kind == "cancel":
            if (task := self._calls.get(message.cancel.call)) is not None:
                task.cancel()
        elif kind == "forget":
            self._mapped.drop(message.forget.segment)
        elif kind == "ping":
            pulse = self._worker.pulse()
            pong = pb.Pong(id=message.ping.id, busy_seconds=pulse.busy_seconds, wanted=pulse.wanted)
            self._channel.send(pb.FromWorker(pong=pong))
        elif kind == "load":
            self._start(self._load(message.load))
        elif kind == "close":
            self._start(self._close(message.close.grace))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, message: pb.Load) -> None:
        try:
            info = await self._worker.load(
                message.name,
                Path(message.path),
                manifest_from_json(message.manifest_json),
                samples=Path(message.samples_path) if message.samples_path else None,
            )
        except Exception as error:
            self._fail(0, error)
            return
        loaded = pb.Loaded(model_info_json=model_to_json(info))
        self._channel.send(pb.FromWorker(loaded=loaded))

    async def _run(self, number: int, message: pb.Call) -> None:
        self._lent.setdefault(number, [])
        try:
            call = decode_call(message, self._mapped.block)
            async for event in self._events(call):
                room = await self._room(number, spans_bytes(event))
                encoded = encode_event(event, room)
                encoded.call = number
                self._channel.send(pb.FromWorker(event=encoded))
                if isinstance(event, Result):
                    return
        except asyncio.CancelledError:
            self._fail(number, Cancelled("the call was cancelled"))
        except Exception as error:
            self._fail(number, error)
        finally:
            self._calls.pop(number, None)
            self._lent.pop(number, None)
            self._needs.pop(number, None)

    async def _events(self, call: Call) -> AsyncGenerator[Event, None]:
        async with contextlib.aclosing(self._worker.run(call)) as events:
            async for event in events:
                yield event

    async def _room(self, number: int, size: int) -> Writer:
        """Room for an event's tensors; its segment goes back with the event."""
        if not size:
            return Writer()
        lent = self._lent[number]
        for position, segment in enumerate(lent):
            if self._mapped.size(segment) >= size:
                return Writer(self._mapped.whole(lent.pop(position)), segment)
        lent.clear()
        self._needs[number] = asyncio.get_running_loop().create_future()
        self._channel.send(pb.FromWorker(need=pb.Need(call=number, bytes=size)))
        await self._needs[number]
        segment = lent.pop()
        return Writer(self._mapped.whole(segment), segment)

    def _take(self, lends: Iterable[pb.Lend], descriptors: list[int]) -> None:
        """Segments that a call may use, and the descriptors of those that are new."""
        for lend in lends:
            self._mapped.learn(lend.segment, descriptors, lend.size)
            over = lend.call <= self._newest and lend.call not in self._calls
            if lend.for_result and not over:
                self._lent.setdefault(lend.call, []).append(lend.segment)
                need = self._needs.get(lend.call)
                if need is not None and not need.done():
                    need.set_result(None)

    def _fail(self, number: int, error: Exception) -> None:
        if not isinstance(error, InterpretError):
            error = internal_error(error, "a message from the front end")
        self._channel.send(pb.FromWorker(failed=pb.Failed(call=number, error=encode_error(error))))

    async def _close(self, grace: float) -> None:
        await self._worker.close(grace)
        self._done.set()


class _Logs(logging.Handler):
    """Hands records to the front end's log."""

    def __init__(self, channel: Channel[pb.ToWorker], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._channel, self._loop = channel, loop

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a record that cannot be written is not worth a call
            log = pb.Log(level=record.levelno, logger=record.name, text=self.format(record))
            self._loop.call_soon_threadsafe(self._channel.send, pb.FromWorker(log=log))


def _send_logs(channel: Channel[pb.ToWorker]) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_Logs(channel, asyncio.get_running_loop())]
    root.setLevel(logging.INFO)

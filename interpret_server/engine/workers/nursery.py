"""The front end's handle on the nursery, the process that workers are forked from."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ...errors import Unavailable
from .. import allocator, sandbox, waiting
from ..api import PluginInfo
from . import protocol_pb2 as pb
from .channel import Channel
from .connection import Connection
from .documents import plugins_from_json
from .errors import ProtocolError
from .output import Output

_logger = logging.getLogger(__name__)
_PROGRAM = f"{__package__}.forking"
_START_SECONDS = 180.0  # imports on a cold, busy machine take their time


class NurseryError(Exception):
    """The nursery did not start; the message is one sentence."""


@dataclass(frozen=True)
class Limits:
    """What one worker may use.

    Args:
        confined: run inside the sandbox.
        memory_bytes: of address space, on the CPU; None for no limit.
        gpu_memory_fraction: of a GPU's memory; 0 for all that is free.
        threads: that compute; 0 for torch's own choice, one per core.
        max_queue, max_queue_bytes, max_batch, max_step: see `LocalWorker`.
        execution: see `models.execution.Execution`.
    """

    confined: bool = True
    memory_bytes: int | None = None
    gpu_memory_fraction: float = 0.0
    threads: int = 0
    max_queue: int = 256
    max_queue_bytes: int = 1 << 30
    max_batch: int = 64
    max_step: float = 0.25
    execution: str = "auto"


class Nursery:
    """Starts the process, asks it for the plugins, and has it fork workers.

    Args:
        limits: of every worker.
        plugin_dirs: folders of single-file plugins.
        lost: called once if the process ends by itself.
    """

    def __init__(
        self, limits: Limits, plugin_dirs: Sequence[Path], lost: Callable[[], None]
    ) -> None:
        self._limits, self._plugin_dirs, self._lost = limits, plugin_dirs, lost
        self._numbers = count(1)
        self._connections: dict[int, Connection] = {}
        self._described: asyncio.Future[pb.Described] | None = None
        self._closing = False

    async def start(self) -> tuple[tuple[PluginInfo, ...], int]:
        """Start the process.

        Returns:
            The plugins, and how many CUDA devices there are.

        Raises:
            NurseryError: it does not start, or a plugin cannot be used.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._output = Output(reading)
        with theirs:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # returns in a millisecond
                [sys.executable, "-m", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
                env=_environment(self._limits),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        os.close(writing)
        self._described = loop.create_future()
        self._channel: Channel[pb.FromNursery] = Channel(
            ours, pb.FromNursery, self._receive, self._closed
        )
        describe = pb.Describe(plugin_dirs=[str(folder.absolute()) for folder in self._plugin_dirs])
        self._channel.send(pb.ToNursery(describe=describe))
        try:
            async with asyncio.timeout(_START_SECONDS):
                described = await self._described
            return plugins_from_json(described.plugins_json), described.cuda_devices
        except TimeoutError:
            raise NurseryError("the process that workers come from did not start in time") from None
        except ProtocolError as error:
            raise NurseryError(str(error)) from None

    def spawn(self, name: str, device: str, read: Sequence[Path]) -> Connection:
        """A new worker.

        Args:
            name: of its model, for messages.
            device: that it computes on.
            read: files and folders that it may read.

        Raises:
            Unavailable: the nursery is gone.
        """
        if self._closing or self._process.poll() is not None:
            raise Unavailable("no worker can be started at the moment; try again")
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        number, limits = next(self._numbers), self._limits
        spawn = pb.Spawn(
            worker=number,
            device=device,
            confined=limits.confined,
            memory_bytes=limits.memory_bytes or 0,
            gpu_memory_fraction=limits.gpu_memory_fraction,
            max_queue=limits.max_queue,
            max_queue_bytes=limits.max_queue_bytes,
            max_batch=limits.max_batch,
            max_step=limits.max_step,
            execution=limits.execution,
            read=[str(path) for path in read],
        )
        connection = Connection(name, ours, Output(reading), lambda: self._kill(number))
        self._connections[number] = connection
        self._channel.send(pb.ToNursery(spawn=spawn), (theirs.fileno(), writing))
        theirs.close()
        os.close(writing)
        return connection

    async def close(self) -> None:
        """End the process and every worker."""
        self._closing = True
        self._channel.close()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._output.close()
        for connection in list(self._connections.values()):
            connection.ended(0)
        self._connections.clear()

    def _kill(self, number: int) -> None:
        if number in self._connections:
            self._channel.send(pb.ToNursery(kill=pb.Kill(worker=number)))

    def _receive(self, message: pb.FromNursery, descriptors: list[int]) -> None:
        kind = message.WhichOneof("message")
        described = self._described
        if kind == "exited":
            connection = self._connections.pop(message.exited.worker, None)
            if connection is not None:
                connection.ended(message.exited.status)
        elif kind == "spawned":
            if (connection := self._connections.get(message.spawned.worker)) is not None:
                connection.process_id = message.spawned.pid
        elif described is None or described.done():
            return
        elif kind == "described":
            described.set_result(message.described)
        elif kind == "refused":
            described.set_exception(NurseryError(message.refused.sentence))

    def _closed(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        said = self._output.tail()
        if self._described is not None and not self._described.done():
            self._described.set_exception(
                NurseryError(
                    f"the process that workers come from ended{f': {said}' if said else ''}"
                )
            )
            return
        _logger.error("the process that workers come from ended: %s", said or error)
        self._process.kill()
        self._process.wait()
        for connection in list(self._connections.values()):
            connection.ended(-9)
        self._connections.clear()
        self._lost()


def _environment(limits: Limits) -> dict[str, str]:
    """The variables of the nursery and of its workers.

    Computing threads are set by one: `torch.set_num_threads` would give MKL a count that
    `one_thread` cannot lower, so that threads that only check and load would bring teams of their
    own, and more teams than cores make all of them slow.
    """
    threads = {"OMP_NUM_THREADS": str(limits.threads)} if limits.threads else {}
    alone = {"GRPC_ENABLE_FORK_SUPPORT": "0"}  # a forked worker must have a single thread
    own = allocator.environment() | waiting.environment()
    return own | sandbox.environment() | threads | alone

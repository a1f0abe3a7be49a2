"""The nursery process: imports torch and the plugins once, and forks every worker.

It computes nothing and never has a second thread, so that a fork is safe and takes milliseconds;
it never initialises CUDA, which would be lost in its children. It ends with the front end, and
its workers with it. `python -m interpret_server.engine.workers.forking DESCRIPTOR PARENT`.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from ...registry import PluginLoadError, Registry
from ..allocator import keep_freed_memory
from ..describe import describe_plugin
from . import protocol_pb2 as pb
from .channel import receive_message, send_message
from .documents import plugins_to_json
from .lifeline import end_with_parent

# What loading a model imports on first use, so that no worker pays for it.
_WARM = (
    "onnx",
    "onnxruntime",
    "torch.export",
    "torch.fx",
    "interpret_server.models.loading",
    "interpret_server.models.onnx",
    "interpret_server.models.exported",
    "interpret_server.models.torchscript",
    "interpret_server.engine.local",
    "interpret_server.engine.workers.hosting",
)


class Forking:
    """Answers the front end over a socket until it is closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._registry = Registry()
        self._workers: dict[int, int] = {}  # process id -> worker
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Handle messages and the ends of children; returns when the front end is gone."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            either: list[Any] = [self._sock, self._woken]
            ready, _, _ = select.select(either, [], [])
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._sock in ready:
                received = receive_message(self._sock, pb.ToNursery)
                if received is None:
                    return
                self._handle(*received)

    def end(self) -> None:
        """Kill every worker."""
        for process in self._workers:
            os.kill(process, signal.SIGKILL)

    def _handle(self, message: pb.ToNursery, descriptors: list[int]) -> None:
        kind = message.WhichOneof("message")
        if kind == "describe":
            self._describe(message.describe)
        elif kind == "spawn":
            self._spawn(message.spawn, descriptors)
        elif kind == "kill":
            for process, worker in self._workers.items():
                if worker == message.kill.worker:
                    os.kill(process, signal.SIGKILL)

    def _describe(self, message: pb.Describe) -> None:
        try:
            registry = Registry.installed()
            for folder in message.plugin_dirs:
                registry.add_folder(Path(folder))
        except PluginLoadError as error:
            self._send(pb.FromNursery(refused=pb.Refused(sentence=str(error))))
            return
        self._registry = registry
        for module in _WARM:
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(module)
        gc.collect()
        gc.freeze()
        described = pb.Described(
            plugins_json=plugins_to_json(tuple(map(describe_plugin, registry))),
            cuda_devices=_count_devices(),
        )
        self._send(pb.FromNursery(described=described))

    def _spawn(self, message: pb.Spawn, descriptors: list[int]) -> None:
        channel, output = descriptors
        nursery = os.getpid()
        try:
            process = os.fork()
        except OSError:  # the system gives no more processes
            os.close(channel)
            os.close(output)
            exited = pb.Exited(worker=message.worker, status=-signal.SIGKILL)
            self._send(pb.FromNursery(exited=exited))
            return
        if not process:
            self._become_worker(message, channel, output, nursery)
        os.close(channel)
        os.close(output)
        self._workers[process] = message.worker
        spawned = pb.Spawned(worker=message.worker, pid=process)
        self._send(pb.FromNursery(spawned=spawned))

    def _become_worker(
        self, message: pb.Spawn, channel: int, output: int, nursery: int
    ) -> NoReturn:
        """In the child: never returns to the nursery's code."""
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            end_with_parent(nursery)
            with contextlib.suppress(OSError):  # where memory runs out, let it be this one's end
                Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
            from .hosting import host

            status = host(message, channel, output, self._registry)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._workers:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            worker = self._workers.pop(process, None)
            if worker is not None:
                exited = pb.Exited(worker=worker, status=os.waitstatus_to_exitcode(status))
                self._send(pb.FromNursery(exited=exited))

    def _send(self, message: pb.FromNursery) -> None:
        send_message(self._sock, message)


def _count_devices() -> int:
    """How many CUDA devices there are, counted by a child: this process must not touch CUDA."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            import torch

            os.write(writing, str(torch.cuda.device_count()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    os.waitpid(process, 0)
    return int(answer or 0)


def main() -> None:
    """Run in a process of its own: `DESCRIPTOR` of the socket, process id of the front end."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    forking = Forking(socket.socket(fileno=descriptor))
    try:
        forking.serve()
    except (BrokenPipeError, ConnectionError):
        pass
    finally:
        forking.end()


if __name__ == "__main__":
    main()

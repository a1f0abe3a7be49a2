"""A server's memory over many large calls."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from chunking import answers, beside, call, run_request, values

from interpret_api.v1.chunked_service_pb2_grpc import ChunkedServiceStub

SERVER = """
import asyncio, sys
from interpret_server.engine.allocator import keep_freed_memory
from fake_worker import FakeWorker
from interpret_server.rpc.server import Server

class Forgetful(FakeWorker):
    def run(self, call):
        self.calls.clear()
        return super().run(call)

async def main():
    server = Server(Forgetful())
    print(await server.start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)

keep_freed_memory()
asyncio.run(main())
"""
COUNT = 1 << 20  # 4 MiB
MIB = 1 << 20


def resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_over_two_hundred_calls_of_which_some_are_cancelled() -> None:
    large = values(COUNT)
    data, request = large.tobytes(), run_request(beside(large.shape, 1))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        with grpc.insecure_channel(server.stdout.readline().strip()) as channel:
            stub = ChunkedServiceStub(channel)

            def use(calls: int) -> int:
                for number in range(calls):
                    stream = stub.Call(call(data, run=request))
                    if number % 5 == 4:
                        next(stream)
                        stream.cancel()
                    else:
                        ((_, parts),) = answers(stream)
                        assert parts == [data]
                return resident(server.pid)

            warm = use(40)
            assert use(200) < warm + 16 * MIB
        server.stdin.close()
        assert server.wait(20) == 0

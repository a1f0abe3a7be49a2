"""A server over a fake worker, and a channel to it."""

from collections.abc import Iterator

import grpc
import pytest
from fake_worker import FakeWorker

from interpret_server.testing.server import serve


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def address(worker: FakeWorker) -> Iterator[str]:
    with serve(worker=worker, grace=0.2) as address:
        yield address


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel

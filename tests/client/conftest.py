"""A fake server of the API, and clients of it."""

from collections.abc import Iterator

import numpy as np
import pytest
from fake_interpret_server import SHAPE, FakeServer, start

import interpret_client


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    fake, server = start()
    yield fake
    server.stop(None).wait()


@pytest.fixture
def client(fake: FakeServer) -> Iterator[interpret_client.Client]:
    with interpret_client.connect(fake.address) as client:
        yield client


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(1).random((2, *SHAPE), dtype=np.float32)

"""Only the threads that compute for callers have teams of OpenMP threads."""

import threading
from collections.abc import Iterator

import pytest
import torch

from interpret_server.engine.openmp import _library, one_thread

pytestmark = pytest.mark.skipif(_library() is None, reason="torch does not use GNU OpenMP here")


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_block_computes_alone_and_no_other_thread_does(two_threads: None) -> None:
    elsewhere: list[int] = []
    with one_thread():
        assert torch.get_num_threads() == 1
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert elsewhere == [2]
    assert torch.get_num_threads() == 2


def test_the_setting_comes_back_after_a_failure(two_threads: None) -> None:
    with pytest.raises(ValueError), one_thread():
        raise ValueError
    assert torch.get_num_threads() == 2

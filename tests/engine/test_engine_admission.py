"""What may wait, on a clock that the tests turn."""

import pytest

from interpret_server.engine.admission import Admission
from interpret_server.errors import Overloaded


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def admission(calls=16, size=1000, clock=None):
    return Admission(calls, size, clock or Clock())


def fill(queue, client, count, size=0):
    for _ in range(count):
        queue.enter(client, size)


def refusal(queue, client, size=0):
    before = (queue.calls, queue.bytes)
    with pytest.raises(Overloaded) as caught:
        queue.enter(client, size)
    assert (queue.calls, queue.bytes) == before
    return caught.value


def test_a_full_queue_refuses_everybody_and_takes_again_what_leaves():
    queue = admission()
    for number in range(16):
        queue.enter(f"c{number}", 0)
    assert refusal(queue, "new").message == "16 calls are waiting already; try again later"
    queue.leave("c0", 0)
    queue.enter("new", 0)


def test_a_client_alone_leaves_an_eighth_of_the_places_to_others():
    queue = admission()
    fill(queue, "a", 14)
    assert "14 calls of this client" in refusal(queue, "a").message
    fill(queue, "b", 2)
    assert "16 calls are waiting" in refusal(queue, "b").message


def test_a_client_has_at_most_half_of_the_places_while_others_wait():
    queue = admission()
    queue.enter("b", 0)
    fill(queue, "a", 8)
    assert "8 calls of this client" in refusal(queue, "a").message
    fill(queue, "b", 7)
    queue.leave("a", 0)
    queue.enter("a", 0)


def test_a_queue_of_one_place_takes_one_call():
    queue = admission(calls=1)
    queue.enter("a", 0)
    refusal(queue, "a")
    refusal(queue, "b")


def test_the_bytes_of_the_inputs_that_wait_are_bounded():
    queue = admission(size=8 << 20)
    fill(queue, "a", 2, 3 << 20)
    queue.enter("b", 2 << 20)
    error = refusal(queue, "c", 1)
    assert error.message == "inputs of 8 MiB are waiting already; try again later"
    queue.leave("a", 3 << 20)
    queue.enter("c", 1)


def test_a_client_leaves_an_eighth_of_the_bytes_to_others():
    queue = admission(size=8 << 20)
    fill(queue, "a", 2, 3 << 20)
    error = refusal(queue, "a", (1 << 20) + 1)
    assert error.message == "inputs of 6 MiB of this client are waiting already; try again later"
    queue.enter("a", 1 << 20)
    queue.enter("b", 1 << 20)


def test_a_call_larger_than_the_bound_waits_where_none_waits():
    queue = admission(size=1000)
    queue.enter("a", 5000)
    refusal(queue, "b", 5000)
    refusal(queue, "b", 1)
    queue.leave("a", 5000)
    queue.enter("b", 5000)


def test_the_time_to_retry_follows_the_rate_at_which_calls_start():
    clock = Clock()
    queue = admission(calls=80, clock=clock)
    for number in range(80):
        queue.enter(f"c{number}", 0)
    for number in range(40):
        clock.now += 0.5
        queue.leave(f"c{number}", 0)
        queue.started(1)
    assert queue.retry_after() == pytest.approx(5 * 0.5, rel=0.01)
    for number in range(40, 60):
        clock.now += 0.5
        queue.leave(f"c{number}", 0)
        queue.started(10)
    assert queue.retry_after() == pytest.approx(2 * 0.05, rel=0.2)


def test_the_time_to_retry_grows_while_nothing_starts():
    clock = Clock()
    queue = admission(clock=clock)
    for number in range(16):
        queue.enter(f"c{number}", 0)
    soon = refusal(queue, "x").retry_after
    clock.now += 30.0
    late = refusal(queue, "x").retry_after
    assert 0.05 <= soon < late == pytest.approx(2 * 30 / 16)
    clock.now += 3600.0
    assert refusal(queue, "x").retry_after == 10.0


def test_what_has_left_is_forgotten():
    queue = admission()
    for number in range(100):
        queue.enter(f"c{number}", 5)
        queue.leave(f"c{number}", 5)
    assert (queue.calls, queue.bytes) == (0, 0)
    assert not queue._calls_of
    assert not queue._bytes_of

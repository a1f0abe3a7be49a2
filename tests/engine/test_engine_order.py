"""Which group has the device next, by seconds that the tests dictate."""

import math
from collections import Counter

import pytest

from interpret_server.engine.shares import Shares
from interpret_server.engine.turns import ADVANCE_SECONDS, EVERY, Turns


class Work:
    """A group of `rows` by client that waits; it ends after some steps of some seconds each."""

    def __init__(self, name, *, steps=math.inf, seconds=0.1, priority=0, started=False, **rows):
        self.name, self.steps, self.seconds = name, steps, seconds
        self.priority, self.started = priority, started
        self.clients = rows or {"a": 1}
        self.place = 0


class Device:
    """Runs a step of whatever is next, as the scheduler does."""

    def __init__(self, *works, may_start=lambda work: True):
        self.turns, self.may_start = Turns(), may_start
        self.spent = Counter()  # seconds by name
        for work in works:
            self.add(work)

    def add(self, work):
        for client in work.clients:
            self.turns.shares.enter(client)
        self.turns.add(work)

    def step(self):
        work = self.turns.take(self.may_start)
        if work is None:
            return None
        work.started = True
        work.steps -= 1
        self.spent[work.name] += work.seconds
        self.turns.shares.charge(work.clients, work.seconds)
        if work.steps:
            self.turns.add(work)
        else:
            for client in work.clients:
                self.turns.shares.leave(client)
        return work.name

    def steps(self, count):
        return [self.step() for _ in range(count)]


def calls(name, count, **fields):
    return [Work(name, steps=1, **fields) for _ in range(count)]


def test_groups_of_one_client_go_in_the_order_in_which_they_came():
    device = Device(*(Work(name) for name in "xyz"))
    assert device.steps(7) == list("xyzxyzx")


def test_a_group_that_has_not_started_goes_before_further_steps():
    device = Device(Work("x"), Work("y"))
    device.steps(3)
    device.add(Work("new"))
    assert device.steps(4) == ["new", "y", "x", "new"]


def test_a_call_waits_for_one_step_of_thirty_runs_of_other_clients():
    device = Device(*(Work(f"run {i}", seconds=0.25, **{f"c{i}": 1}) for i in range(30)))
    device.steps(95)
    for _ in range(20):
        device.add(*calls("call", 1, seconds=0.25, visitor=1))
        assert device.step() == "call"
        assert device.step().startswith("run")


def test_a_higher_priority_goes_first():
    works = [Work(str(priority), steps=1, priority=priority) for priority in (-1, 0, 1)]
    assert Device(*works).steps(4) == ["1", "0", "-1", None]


@pytest.mark.parametrize("started", [False, True])
def test_what_is_passed_over_has_at_least_every_eighth_turn(started):
    high, low = Work("high", priority=1, started=True), Work("low", priority=-1, started=started)
    order = Device(high, low).steps(10 * EVERY)
    assert order.count("low") == 10
    assert order[EVERY - 1] == "low"


def test_running_work_advances_beside_an_endless_stream_of_new_calls():
    device = Device(Work("run", started=True), *calls("call", 100))
    order = device.steps(10 * EVERY)
    assert order.count("run") == 10
    assert order[EVERY - 1] == "run"


def test_two_clients_share_the_seconds_not_the_turns():
    slow, quick = Work("slow", seconds=0.2, a=1), Work("quick", seconds=0.02, b=1)
    device = Device(slow, quick)
    device.steps(220)
    assert device.spent["slow"] == pytest.approx(device.spent["quick"], abs=0.21)


def test_a_client_with_a_hundred_calls_delays_another_by_one_step():
    device = Device(*calls("a", 100))
    device.steps(10)
    for _ in range(10):
        device.add(*calls("b", 1, b=1))
        assert device.steps(2) == ["b", "a"]


def test_many_new_calls_of_one_client_leave_anothers_run_its_share():
    device = Device(Work("run", started=True, b=1), *calls("call", 100))
    device.steps(80)
    assert 0 <= device.spent["call"] - device.spent["run"] <= ADVANCE_SECONDS + 0.21


def test_a_merged_group_is_due_with_the_client_that_has_had_least():
    device = Device(Work("mine", a=1), Work("merged", a=3, c=1))
    device.turns.shares.charge({"a": 1}, 5.0)
    assert device.step() == "merged"


def test_the_clients_of_a_merged_group_pay_by_rows():
    shares = Shares()
    shares.enter("a")
    shares.enter("b")
    shares.charge({"a": 3, "b": 1}, 1.0)
    assert (shares.used("a"), shares.used("b")) == (0.75, 0.25)


def test_what_may_not_start_is_passed_by_and_keeps_its_place():
    device = Device(Work("closed"), Work("open"), may_start=lambda work: work.name != "closed")
    assert device.steps(20) == ["open"] * 20
    device.may_start = lambda work: True
    assert device.step() == "closed"


def test_nothing_is_next_where_nothing_may_start():
    device = Device(Work("closed"), may_start=lambda work: False)
    assert device.step() is None
    assert len(device.turns) == 1


def test_a_call_that_joins_with_a_higher_priority_takes_its_group_along():
    low = Work("low", priority=-1, steps=1)
    device = Device(Work("normal"), low)
    low.priority, low.clients = 1, {"a": 1, "b": 2}
    device.turns.shares.enter("b")
    device.turns.update(low)
    assert device.steps(2) == ["low", "normal"]


def test_a_group_that_is_taken_out_is_not_taken():
    first, second = Work("first", a=1, b=1), Work("second", steps=1, b=1)
    device = Device(first, second)
    device.turns.remove(first)
    assert device.steps(2) == ["second", None]


def test_a_new_client_begins_where_the_others_are():
    shares = Shares()
    shares.enter("a")
    for _ in range(10):
        shares.advance({"a": 1})
        shares.charge({"a": 1}, 1.0)
    shares.enter("b")
    assert 8.9 < shares.used("b") < shares.used("a")


def test_a_client_that_comes_back_keeps_what_it_has_paid_while_others_work():
    shares = Shares()
    shares.enter("a")
    shares.enter("b")
    shares.charge({"a": 1}, 5.0)
    shares.leave("a")
    shares.enter("a")
    assert shares.used("a") == 5.0
    shares.leave("a")
    shares.leave("b")
    shares.enter("a")
    assert shares.used("a") == 0.0


def test_new_clients_for_ever_do_not_hold_up_an_old_one():
    device = Device(Work("old", seconds=0.25, old=1))
    device.step()
    for visitor in range(300):
        device.add(*calls("visit", 1, seconds=0.25, started=True, **{f"v{visitor}": 1}))
        device.step()
    assert device.spent["old"] > 0.25


def test_idle_clients_are_forgotten():
    shares = Shares()
    shares.enter("busy")
    for index in range(5000):
        shares.enter(f"c{index}")
        shares.charge({f"c{index}": 1}, 1.0)
        shares.leave(f"c{index}")
    assert len(shares._used) <= 1025
    assert set(shares._calls) == {"busy"}

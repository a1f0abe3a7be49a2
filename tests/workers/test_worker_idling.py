"""A worker that computes for nobody is noticed."""

import os

import pytest

from interpret_server.engine.workers import idling
from interpret_server.engine.workers.idling import Idleness, computed


class Clock:
    """A process and a clock that tests move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.spent = 100.0, 7.0
        monkeypatch.setattr(idling.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(idling, "computed", lambda process_id: self.spent)
        self.idleness = Idleness(5.0)

    def after(self, seconds: float, computing: float, *, idle: bool = True) -> bool:
        self.now, self.spent = self.now + seconds, self.spent + computing
        return self.idleness.wasted(1, idle=idle)


def test_a_process_that_computes_all_through_its_idleness_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    assert [clock.after(1.0, 0.5) for _ in range(7)] == [False] * 5 + [True, False]


def test_a_process_that_rests_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert not any(clock.after(1.0, 0.01) for _ in range(20))


def test_what_a_process_computes_for_a_caller_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    for _ in range(5):
        assert not any(clock.after(1.0, 1.0) for _ in range(4))
        assert not clock.after(1.0, 1.0, idle=False)


def test_the_computing_of_a_process_is_known_while_it_runs() -> None:
    before = computed(os.getpid())
    assert before is not None
    while (now := computed(os.getpid())) is not None and now == before:
        sum(range(10_000))
    assert now is not None
    assert now > before
    assert computed(2**22 + 1) is None
    assert not Idleness(1.0).wasted(None, idle=True)

"""Threads that wait for each other soon sleep, unless the user has said how they wait."""

import pytest

from interpret_server.engine import waiting
from interpret_server.engine.workers import nursery


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def test_workers_spin_for_a_twentieth_of_a_millisecond() -> None:
    assert nursery._environment(nursery.Limits())["GOMP_SPINCOUNT"] == "5000"


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")]
)
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert waiting.environment() == {}
    found = nursery._environment(nursery.Limits())
    assert found[name] == value
    assert ("GOMP_SPINCOUNT" in found) == (name == "GOMP_SPINCOUNT")

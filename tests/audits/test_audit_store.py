"""The store, on SQLite and PostgreSQL alike."""

import dataclasses
import math
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import sqlalchemy as sql
from audit_databases import emptied
from audit_fakes import SPEC, audit, plan, result_of

from interpret_server.audits import database as database_module
from interpret_server.audits.plan import Unit
from interpret_server.audits.records import Audit, State, UnitResult, digest_of_set
from interpret_server.audits.spec import AuditSpec
from interpret_server.audits.store import Store
from interpret_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Unavailable,
)

PLAN = plan()
UNITS = tuple(PLAN.units())


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = Store(database)
    yield store
    store.close()


def fill(store: Store, units: int, audit_id: str = "one") -> Audit:
    stored = store.audit(audit_id)
    for unit in islice(UNITS, units):
        stored = store.add(audit_id, unit, result_of(unit, PLAN))
    return stored


def test_an_audit_comes_back_as_it_was(store: Store):
    given = audit()
    store.insert(given)
    total = len(UNITS)
    assert store.audit("one") == dataclasses.replace(given, total=total)
    assert store.audits() == (store.audit("one"),)


def test_audits_are_listed_in_order_of_creation(store: Store):
    for name in ("b", "a", "c"):
        store.insert(audit(name))
    assert [item.id for item in store.audits()] == ["b", "a", "c"]


def test_an_id_is_taken_once(store: Store):
    store.insert(audit())
    with pytest.raises(AlreadyExists, match="one"):
        store.insert(audit())


def test_unknown_audits_are_not_found(store: Store):
    for ask in (store.audit, store.findings, lambda name: store.batch(name, 0)):
        with pytest.raises(NotFound, match="'nobody'"):
            ask("nobody")
    with pytest.raises(NotFound):
        store.set_state("nobody", State.RUNNING)
    with pytest.raises(NotFound):
        store.finish("nobody", 1.0, "")
    store.delete("nobody")


def test_states_errors_and_times_change(store: Store):
    store.insert(audit())
    assert store.set_state("one", State.RUNNING, started=13.25).started == 13.25
    failed = store.set_state("one", State.FAILED, error="params.x: too large")
    assert (failed.state, failed.error) == (State.FAILED, "params.x: too large")
    assert (failed.started, failed.finished) == (13.25, None)
    assert store.set_state("one", State.QUEUED).error == ""
    assert store.audit("one").state is State.QUEUED


def test_a_finished_audit_tells_when_and_the_digest_of_its_data(store: Store):
    store.insert(audit())
    failed = store.set_state("one", State.FAILED, error="the disk is full", started=13.25)
    finished = store.finish("one", 14.5, "cd" * 32)
    assert finished.origin == dataclasses.replace(failed.origin, data_sha256="cd" * 32)
    assert (finished.state, finished.error) == (State.FINISHED, "")
    assert (finished.started, finished.finished) == (13.25, 14.5)
    assert store.audits() == (finished,)


def test_findings_are_what_units_found_and_nan_comes_back(store: Store):
    store.insert(audit())
    fill(store, len(UNITS))
    found = store.findings("one")
    results = [result_of(unit, PLAN) for unit in UNITS]
    samples = [sample for result in results for sample in result.samples]
    outcomes = [outcome for result in results for outcome in result.outcomes]
    assert found.complete
    assert list(map(repr, found.samples)) == list(map(repr, samples))  # NaN is not itself
    assert list(map(repr, found.outcomes)) == list(map(repr, outcomes))
    assert any(math.isnan(sample.confidence) for sample in found.samples)
    assert [(unit.batch, unit.stage, unit.warnings, unit.seconds) for unit in found.units] == [
        (result.batch, result.stage, result.warnings, result.seconds) for result in results
    ]
    digest = digest_of_set([sample.digest for sample in samples])
    assert found.audit.origin.data_sha256 == digest


def test_findings_hold_whole_batches_alone(store: Store):
    store.insert(audit())
    for units, batches in ((0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3)):
        store.delete("one")
        store.insert(audit())
        fill(store, units)
        found = store.findings("one")
        assert len(found.samples) == min(4 * batches, 10)
        assert {unit.batch for unit in found.units} == set(range(batches))
        assert {outcome.row for outcome in found.outcomes} <= {s.row for s in found.samples}
        assert found.complete == (batches == 3)


def test_a_batch_has_its_own_samples_and_outcomes(store: Store):
    store.insert(audit())
    store.insert(audit("other"))
    fill(store, 8)
    fill(store, 3, "other")
    samples, outcomes = store.batch("one", 1)
    assert [sample.row for sample in samples] == [4, 5, 6, 7]
    assert [(o.stage, o.row) for o in outcomes] == [
        (stage, row) for stage in ("linf:0.1:pgd", "linf:0.3:pgd") for row in (4, 5, 7)
    ]
    assert store.batch("one", 2) == ((), ())


def test_what_stands_is_counted_as_units_are_stored(store: Store):
    store.insert(audit())
    counts = []
    for unit in UNITS:
        stored = store.add("one", unit, result_of(unit, PLAN))
        counts.append((stored.samples, stored.correct, stored.standing))
    # Rows 0, 3, 6, 9 are wrong from the start; 1, 5, 7 fall at 0.3 (the norm's largest radius).
    first = [(4, 2, 2), (4, 2, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1)]
    second = [(8, 5, 4), (8, 5, 4), (8, 5, 2), (8, 5, 2)]
    third = [(10, 6, 3)] * 4
    assert counts == first + second + third
    assert stored.done == stored.total == len(UNITS)
    assert stored.seconds == 3 * 0.5 + 10 * 0.25


def test_changes_beyond_the_largest_radius_leave_a_sample_standing(store: Store):
    spec = SPEC.model_dump() | {"threats": [{"norm": "linf", "epsilons": [0.1, 0.2]}]}
    store.insert(audit(spec=AuditSpec.model_validate(spec)))
    assert fill(store, len(UNITS)).standing == 6


def test_no_unit_is_stored_twice(store: Store):
    store.insert(audit())
    fill(store, 3)
    before = store.audit("one"), store.findings("one")
    with pytest.raises(AlreadyExists, match=r"linf:0\.3:pgd of batch 0"):
        store.add("one", UNITS[2], result_of(UNITS[2], PLAN))
    assert (store.audit("one"), store.findings("one")) == before


def test_a_unit_is_stored_whole_or_not_at_all(store: Store):
    store.insert(audit())
    before = fill(store, 1)
    result = result_of(UNITS[1], PLAN)
    torn = dataclasses.replace(result, outcomes=(*result.outcomes, result.outcomes[0]))
    with pytest.raises(sql.exc.IntegrityError):
        store.add("one", UNITS[1], torn)
    assert store.audit("one") == before
    assert store.batch("one", 0)[1] == ()
    store.add("one", UNITS[1], result)


def test_a_deleted_audit_leaves_nothing(store: Store, database: str):
    store.insert(audit())
    store.insert(audit("other"))
    fill(store, 6)
    fill(store, 5, "other")
    kept = store.findings("other")
    store.delete("one")
    assert store.findings("other") == kept or repr(store.findings("other")) == repr(kept)
    store.delete("other")
    engine = sql.create_engine(database)
    with engine.connect() as connection:
        for table in ("audits", "samples", "outcomes", "units"):
            assert connection.scalar(sql.text(f"select count(*) from {table}")) == 0
    engine.dispose()


def test_everything_is_there_after_reopening(store: Store, database: str):
    store.insert(audit())
    fill(store, 7)
    again = Store(database)
    assert again.audits() == store.audits()
    assert repr(again.findings("one")) == repr(store.findings("one"))
    again.close()


def test_another_version_of_the_tables_is_refused(store: Store, database: str):
    engine = sql.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sql.text("update audit_schema set version = 7"))
    engine.dispose()
    with pytest.raises(FailedPrecondition, match=r"audit_database: .* version 7.* needs version 1"):
        Store(database)


def test_large_numbers_survive(store: Store):
    store.insert(audit())
    result = result_of(UNITS[0], PLAN)
    store.add("one", UNITS[0], result)
    attacked = result_of(UNITS[1], PLAN)
    huge = dataclasses.replace(attacked.outcomes[0], queries=1 << 40, l2=1e-300, l1=1e300)
    store.add("one", UNITS[1], dataclasses.replace(attacked, outcomes=(huge,)))
    (found,) = store.batch("one", 0)[1]
    assert repr(found) == repr(huge)


def test_a_unit_without_outcomes_counts(store: Store):
    store.insert(audit())
    fill(store, 1)
    stored = store.add("one", Unit(0, 1), UnitResult(0, "linf:0.1:pgd"))
    assert stored.done == 2
    assert store.batch("one", 0)[1] == ()


def test_a_lost_connection_is_made_again(postgresql: Path):
    url = emptied(postgresql)
    store = Store(url)
    store.insert(audit())
    engine = sql.create_engine(url)
    with engine.connect() as connection:
        connection.execute(
            sql.text(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid != pg_backend_pid() and datname = current_database()"
            )
        )
    engine.dispose()
    fill(store, 2)
    assert store.audit("one").done == 2
    store.close()


def test_a_database_that_fails_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database_module, "_BUSY_MS", 10)
    path = tmp_path / "audits.sqlite"
    store = Store(f"sqlite:///{path}")
    store.insert(audit())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")  # somebody else writes
    with pytest.raises(Unavailable, match=r"the database of the audits fails \(.*locked\)"):
        store.set_state("one", State.RUNNING)
    assert store.audit("one").state is State.QUEUED
    other.execute("rollback")
    other.close()
    assert store.set_state("one", State.RUNNING).state is State.RUNNING
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "nosuch://x/y", "sqlite+nosuch:///x"])
def test_a_wrong_url_is_named(url: str):
    with pytest.raises(InvalidRequest, match=r"^audit_database: "):
        Store(url)


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match=r"^audit_database: ") as caught:
        Store(f"sqlite:///{tmp_path / 'no' / 'folder.sqlite'}")
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "text.sqlite").write_text("this is no database" * 100)
    with pytest.raises(FailedPrecondition, match="not a database"):
        Store(f"sqlite:///{tmp_path / 'text.sqlite'}")


def test_sqlite_flushes_every_commit_to_the_disk(tmp_path: Path):
    path = tmp_path / "audits.sqlite"
    store = Store(f"sqlite:///{path}")
    with store._database._engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }
    store.insert(audit())
    beside = sqlite3.connect(path)  # another reader, while the store is open
    assert beside.execute("select id from audits").fetchall() == [("one",)]
    beside.close()
    store.close()

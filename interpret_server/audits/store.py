"""What audits find, in an SQL database: SQLite beside their files, or any other.

A unit is stored in one transaction with its outcomes, after its files are on the disk; what is
committed survives the loss of the process and of power. No unit can be stored twice.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Row

from ..errors import AlreadyExists, NotFound
from . import database as tables
from .database import Database
from .plan import Plan, Unit
from .records import (
    Audit,
    Findings,
    Origin,
    Outcome,
    Sample,
    State,
    UnitRecord,
    UnitResult,
    Warned,
    digest_of_set,
)
from .spec import AuditSpec
from .standing import norms_of, within

_PART = 4096  # rows that are fetched at once


class Store:
    """Audits in a database. Every method blocks: call it in a thread.

    Args:
        url: of the `Database`, which raises what it raises.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def insert(self, audit: Audit) -> None:
        """Add an audit of which nothing is done.

        Raises:
            AlreadyExists: there is one of that id.
        """
        values = {
            "id": audit.id,
            "state": audit.state.value,
            "error": audit.error,
            "spec": audit.spec.model_dump_json(),
            "plan": audit.plan.model_dump_json(),
            "origin": json.dumps(asdict(audit.origin)),
            "created": audit.created,
        }
        try:
            with self._database.transaction(writes=True) as connection:
                connection.execute(tables.audits.insert().values(values))
        except sql.exc.IntegrityError:
            raise AlreadyExists(f"there is an audit {audit.id} already") from None

    def audits(self) -> tuple[Audit, ...]:
        """All audits, in the order in which they were created."""
        with self._database.transaction() as connection:
            rows = connection.execute(sql.select(tables.audits).order_by(tables.audits.c.number))
            return tuple(_audit(row) for row in rows)

    def audit(self, audit_id: str) -> Audit:
        """An audit as it stands.

        Raises:
            NotFound: there is none of that id.
        """
        with self._database.transaction() as connection:
            return _audit(_find(connection, audit_id))

    def set_state(
        self,
        audit_id: str,
        state: State,
        *,
        error: str = "",
        started: float | None = None,
    ) -> Audit:
        """Change an audit's state.

        Args:
            error: of a failed one.
            started: in seconds since the epoch; None leaves what is stored.
        """
        values: dict[str, Any] = {"state": state.value, "error": error}
        if started is not None:
            values["started"] = started
        with self._database.transaction(writes=True) as connection:
            return _changed(connection, audit_id, values)

    def finish(self, audit_id: str, finished: float, data_sha256: str) -> Audit:
        """Change an audit's state to finished.

        Args:
            finished: when, in seconds since the epoch.
            data_sha256: of the samples that its report is about.
        """
        with self._database.transaction(writes=True) as connection:
            origin = json.loads(_find(connection, audit_id, lock=True).origin)
            values = {
                "state": State.FINISHED.value,
                "error": "",
                "finished": finished,
                "origin": json.dumps(origin | {"data_sha256": data_sha256}),
            }
            return _changed(connection, audit_id, values)

    def delete(self, audit_id: str) -> None:
        """Forget an audit and all that it found; nothing happens where there is none."""
        with self._database.transaction(writes=True) as connection:
            connection.execute(tables.audits.delete().where(tables.audits.c.id == audit_id))

    def add(self, audit_id: str, unit: Unit, result: UnitResult) -> Audit:
        """Store a finished unit, its samples and its outcomes, all or nothing.

        Returns:
            The audit with the unit counted.

        Raises:
            AlreadyExists: the unit is stored already.
        """
        with self._database.transaction(writes=True) as connection:
            row = _find(connection, audit_id, lock=True)
            number, audit = row.number, _audit(row)
            key = {"audit": number, "batch": unit.batch, "stage": unit.stage}
            try:
                connection.execute(
                    tables.units.insert().values(
                        **key,
                        warnings=json.dumps([asdict(item) for item in result.warnings]),
                        seconds=result.seconds,
                        stored=time.time(),
                    )
                )
            except sql.exc.IntegrityError:
                raise AlreadyExists(
                    f"unit {result.stage} of batch {unit.batch} is done already"
                ) from None
            correct = sum(sample.correct for sample in result.samples)
            _insert(
                connection,
                tables.samples,
                [
                    {"audit": number, "standing": item.correct, **vars(item)}
                    for item in result.samples
                ],
            )
            _insert(connection, tables.outcomes, [vars(item) | key for item in result.outcomes])
            fallen = _fell(connection, number, _broken(audit, unit, result.outcomes))
            columns = tables.audits.c
            connection.execute(
                tables.audits.update()
                .where(columns.number == number)
                .values(
                    done=columns.done + 1,
                    samples=columns.samples + len(result.samples),
                    correct=columns.correct + correct,
                    standing=columns.standing + (correct - fallen),
                    seconds=columns.seconds + result.seconds,
                )
            )
            return _audit(_find(connection, audit_id))

    def batch(self, audit_id: str, batch: int) -> tuple[tuple[Sample, ...], tuple[Outcome, ...]]:
        """The samples of a batch, and its outcomes so far in order of units and rows."""
        with self._database.transaction() as connection:
            row = _find(connection, audit_id)
            plan = _plan(row.plan)
            rows = plan.rows(batch)
            within_batch = tables.samples.c.row.between(rows.start, rows.stop - 1)
            samples = _read_samples(connection, row.number, within_batch)
            outcomes = _read_outcomes(
                connection, row.number, plan, tables.outcomes.c.batch == batch
            )
        return tuple(samples), tuple(outcomes)

    def findings(self, audit_id: str) -> Findings:
        """Everything that an audit found in its finished batches."""
        with self._database.transaction() as connection:
            row = _find(connection, audit_id)
            audit, plan = _audit(row), _plan(row.plan)
            batches = _whole_batches(connection, row.number, plan)
            stop = plan.rows(batches - 1).stop if batches else 0
            samples = _read_samples(connection, row.number, tables.samples.c.row < stop)
            finished = tables.outcomes.c.batch < batches
            outcomes = _read_outcomes(connection, row.number, plan, finished)
            units = [
                UnitRecord(item.batch, plan.stages[item.stage].key, _warnings(item), item.seconds)
                for item in connection.execute(
                    sql.select(tables.units)
                    .where(tables.units.c.audit == row.number, tables.units.c.batch < batches)
                    .order_by(tables.units.c.batch, tables.units.c.stage)
                )
            ]
        digest = digest_of_set([sample.digest for sample in samples])
        audit = replace(audit, origin=replace(audit.origin, data_sha256=digest))
        return Findings(audit, samples, outcomes, units, batches == plan.batches)


def _find(connection: Connection, audit_id: str, *, lock: bool = False) -> Row[Any]:
    query = sql.select(tables.audits).where(tables.audits.c.id == audit_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"there is no audit {audit_id[:80]!r}")
    return row


def _changed(connection: Connection, audit_id: str, values: Mapping[str, Any]) -> Audit:
    audits = tables.audits
    connection.execute(audits.update().where(audits.c.id == audit_id).values(values))
    return _audit(_find(connection, audit_id))


def _audit(row: Row[Any]) -> Audit:
    plan = _plan(row.plan)
    return Audit(
        id=row.id,
        spec=_spec(row.spec),
        plan=plan,
        origin=_origin(row.origin),
        state=State(row.state),
        error=row.error,
        done=row.done,
        total=plan.total,
        samples=row.samples,
        correct=row.correct,
        standing=row.standing,
        created=row.created,
        started=row.started,
        finished=row.finished,
        seconds=row.seconds,
    )


# Read with every unit, and never changed.
@lru_cache(maxsize=8)
def _plan(text: str) -> Plan:
    return Plan.model_validate_json(text)


@lru_cache(maxsize=8)
def _spec(text: str) -> AuditSpec:
    return AuditSpec.model_validate_json(text)


@lru_cache(maxsize=8)
def _origin(text: str) -> Origin:
    values = json.loads(text)
    lists = {name: tuple(values[name]) for name in ("input_shape", "bounds", "labels")}
    return Origin(**{**values, **lists})


def _insert(connection: Connection, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), list(rows))


def _broken(audit: Audit, unit: Unit, outcomes: Sequence[Outcome]) -> list[int]:
    """The rows that are broken at the largest radius of the stage's threat model."""
    norm = norms_of(audit.plan)[audit.plan.stages[unit.stage].key]
    radius = max(
        (
            epsilon
            for threat in audit.spec.threats
            if threat.norm == norm
            for epsilon in threat.epsilons
        ),
        default=None,
    )
    if norm is None or radius is None:
        return []
    return [
        outcome.row
        for outcome in outcomes
        if outcome.confirmed and within(outcome.distance(norm), radius)
    ]


def _fell(connection: Connection, number: int, rows: Sequence[int]) -> int:
    """How many of these rows stood so far; none does from now on."""
    if not rows:
        return 0
    columns = tables.samples.c
    return connection.execute(
        tables.samples.update()
        .where(columns.audit == number, columns.row.in_(rows), columns.standing)
        .values(standing=False)
    ).rowcount


def _whole_batches(connection: Connection, number: int, plan: Plan) -> int:
    """How many batches are done, of which the first ones are always done first."""
    done = connection.scalar(
        sql.select(sql.func.count()).select_from(tables.units).where(tables.units.c.audit == number)
    )
    of_first, of_next = len(plan.stages), sum(not stage.first_batch for stage in plan.stages)
    return 0 if done is None or done < of_first else 1 + (done - of_first) // of_next


def _read_samples(
    connection: Connection, number: int, which: sql.ColumnElement[bool]
) -> list[Sample]:
    columns = tables.samples.c
    query = (
        sql.select(columns.row, columns.label, columns.digest, columns.decision, columns.confidence)
        .where(columns.audit == number, which)
        .order_by(columns.row)
    )
    return [Sample(*row) for row in _rows(connection, query)]


def _read_outcomes(
    connection: Connection, number: int, plan: Plan, which: sql.ColumnElement[bool]
) -> list[Outcome]:
    columns = tables.outcomes.c
    names = ("claimed", "confirmed", "queries", "digest", "decision", *tables.FLOATS)
    query = (
        sql.select(columns.row, columns.stage, *(columns[name] for name in names))
        .where(columns.audit == number, which)
        .order_by(columns.batch, columns.stage, columns.row)
    )
    keys = [stage.key for stage in plan.stages]
    return [Outcome(row, keys[stage], *values) for row, stage, *values in _rows(connection, query)]


def _rows(connection: Connection, query: sql.Select[Any]) -> Iterator[Any]:
    """Fetched many at a time, which is faster than one by one."""
    for part in connection.execute(query).partitions(_PART):
        yield from part


def _warnings(row: Row[Any]) -> tuple[Warned, ...]:
    return tuple(Warned(item["message"], tuple(item["rows"])) for item in json.loads(row.warnings))

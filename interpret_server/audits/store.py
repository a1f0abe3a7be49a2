"""What audits find, in an SQL database: SQLite beside their files, or any other.

A unit is stored in one transaction with its outcomes, after its files are on the disk; what is
committed survives the loss of the process and of power. No unit can be stored twice.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sql
from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Integer, MetaData, Text
from sqlalchemy.engine import Connection, Engine, Row

from ..errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound, Unavailable
from .plan import Plan, Stage, Unit
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
from .standing import within

SCHEMA = 1
_BUSY_MS = 30_000
_WRITES = "writes"  # of a transaction
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up in this type alone


class _Number(sql.types.TypeDecorator[float]):
    """A float whose NaN is NULL: SQLite has no other."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Any) -> float | None:
        return None if value is None or value != value else float(value)

    def process_result_value(self, value: float | None, dialect: Any) -> float:
        return float("nan") if value is None else value


_META = MetaData()
_schemas = sql.Table("audit_schema", _META, sql.Column("version", Integer, nullable=False))
_audits = sql.Table(
    "audits",
    _META,
    sql.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sql.Column("id", Text, nullable=False, unique=True),
    sql.Column("state", Text, nullable=False),
    sql.Column("error", Text, nullable=False, default=""),
    sql.Column("spec", Text, nullable=False),
    sql.Column("plan", Text, nullable=False),
    sql.Column("origin", Text, nullable=False),
    *(
        sql.Column(name, BigInteger, nullable=False, default=0)
        for name in ("done", "samples", "correct", "standing")
    ),
    sql.Column("created", Double, nullable=False),
    sql.Column("started", Double),
    sql.Column("finished", Double),
    sql.Column("seconds", Double, nullable=False, default=0.0),
)


def _of_audit(**options: Any) -> sql.Column[int]:
    link = ForeignKey("audits.number", ondelete="CASCADE")
    return sql.Column("audit", _NUMBER, link, nullable=False, **options)


_samples = sql.Table(
    "samples",
    _META,
    _of_audit(primary_key=True),
    sql.Column("row", BigInteger, primary_key=True, autoincrement=False),
    sql.Column("label", BigInteger, nullable=False),
    sql.Column("digest", Text, nullable=False),
    sql.Column("decision", BigInteger, nullable=False),
    sql.Column("confidence", _Number),
    sql.Column("standing", Boolean, nullable=False),
)
_units = sql.Table(
    "units",
    _META,
    sql.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    _of_audit(),
    sql.Column("batch", BigInteger, nullable=False),
    sql.Column("stage", Integer, nullable=False),
    sql.Column("warnings", Text, nullable=False),
    sql.Column("seconds", Double, nullable=False),
    sql.Column("stored", Double, nullable=False),
    sql.UniqueConstraint("audit", "batch", "stage"),
)
_FLOATS = ("confidence", "margin", "l0", "l1", "l2", "linf")
_outcomes = sql.Table(
    "outcomes",
    _META,
    _of_audit(primary_key=True),
    sql.Column("batch", BigInteger, primary_key=True, autoincrement=False),
    sql.Column("stage", Integer, primary_key=True, autoincrement=False),
    sql.Column("row", BigInteger, primary_key=True, autoincrement=False),
    sql.Column("claimed", Boolean, nullable=False),
    sql.Column("confirmed", Boolean, nullable=False),
    sql.Column("queries", BigInteger, nullable=False),
    sql.Column("digest", Text, nullable=False),
    sql.Column("decision", BigInteger, nullable=False),
    *(sql.Column(name, _Number) for name in _FLOATS),
)


class Store:
    """Audits in a database. Every method blocks: call it in a thread.

    Args:
        url: of SQLAlchemy, such as `sqlite:////var/audits/audits.sqlite` or
            `postgresql+psycopg://...`.

    Raises:
        InvalidRequest: the URL is wrong, or its driver is not installed.
        FailedPrecondition: the database does not answer, or is of another version.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sql.create_engine(url, pool_pre_ping=True)
        except (sql.exc.ArgumentError, ImportError) as error:
            raise InvalidRequest.field(
                "audit_database", f"no database can be opened by this URL ({_brief(error)})"
            ) from None
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        try:
            self._open()
        except sql.exc.SQLAlchemyError as error:
            self._engine.dispose()
            raise FailedPrecondition(
                f"audit_database: the database cannot be opened ({_brief(error)})"
            ) from None
        except BaseException:
            self._engine.dispose()
            raise

    def _open(self) -> None:
        with self._engine.execution_options(**{_WRITES: True}).begin() as connection:
            _META.create_all(connection)
            versions = connection.scalars(sql.select(_schemas.c.version)).all()
            if not versions:
                connection.execute(_schemas.insert().values(version=SCHEMA))
            elif versions != [SCHEMA]:
                raise FailedPrecondition(
                    f"audit_database: its tables are of version {versions[0]}, and this server "
                    f"needs version {SCHEMA}; name another database, or run the server that made it"
                )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        """All or nothing of what is done in it; every method raises `Unavailable` so."""
        try:
            with self._engine.execution_options(**{_WRITES: writes}).begin() as connection:
                yield connection
        except (sql.exc.OperationalError, sql.exc.InterfaceError) as error:
            raise Unavailable(f"the database of the audits fails ({_brief(error)})") from None

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
            with self._transaction(writes=True) as connection:
                connection.execute(_audits.insert().values(values))
        except sql.exc.IntegrityError:
            raise AlreadyExists(f"there is an audit {audit.id} already") from None

    def audits(self) -> tuple[Audit, ...]:
        """All audits, in the order in which they were created."""
        with self._transaction() as connection:
            rows = connection.execute(sql.select(_audits).order_by(_audits.c.number))
            return tuple(_audit(row) for row in rows)

    def audit(self, audit_id: str) -> Audit:
        """An audit as it stands.

        Raises:
            NotFound: there is none of that id.
        """
        with self._transaction() as connection:
            return _audit(_find(connection, audit_id))

    def set_state(
        self,
        audit_id: str,
        state: State,
        *,
        error: str = "",
        started: float | None = None,
        finished: float | None = None,
    ) -> Audit:
        """Change an audit's state.

        Args:
            error: of a failed one.
            started, finished: seconds since the epoch; None leaves what is stored.
        """
        values: dict[str, Any] = {"state": state.value, "error": error}
        times = {"started": started, "finished": finished}
        values |= {name: value for name, value in times.items() if value is not None}
        with self._transaction(writes=True) as connection:
            connection.execute(_audits.update().where(_audits.c.id == audit_id).values(values))
            return _audit(_find(connection, audit_id))

    def delete(self, audit_id: str) -> None:
        """Forget an audit and all that it found; nothing happens where there is none."""
        with self._transaction(writes=True) as connection:
            connection.execute(_audits.delete().where(_audits.c.id == audit_id))

    def add(self, audit_id: str, unit: Unit, result: UnitResult) -> Audit:
        """Store a finished unit, its samples and its outcomes, all or nothing.

        Returns:
            The audit with the unit counted.

        Raises:
            AlreadyExists: the unit is stored already.
        """
        with self._transaction(writes=True) as connection:
            row = _find(connection, audit_id, lock=True)
            number, audit = row.number, _audit(row)
            key = {"audit": number, "batch": unit.batch, "stage": unit.stage}
            try:
                connection.execute(
                    _units.insert().values(
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
                _samples,
                [
                    {"audit": number, "standing": item.correct, **vars(item)}
                    for item in result.samples
                ],
            )
            _insert(connection, _outcomes, [vars(item) | key for item in result.outcomes])
            fallen = _fell(connection, number, _broken(audit, unit, result.outcomes))
            columns = _audits.c
            connection.execute(
                _audits.update()
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
        with self._transaction() as connection:
            row = _find(connection, audit_id)
            plan = _plan(row.plan)
            rows = plan.rows(batch)
            within_batch = _samples.c.row.between(rows.start, rows.stop - 1)
            samples = _read_samples(connection, row.number, within_batch)
            outcomes = _read_outcomes(connection, row.number, plan, _outcomes.c.batch == batch)
        return tuple(samples), tuple(outcomes)

    def findings(self, audit_id: str) -> Findings:
        """Everything that an audit found in its finished batches."""
        with self._transaction() as connection:
            row = _find(connection, audit_id)
            audit, plan = _audit(row), _plan(row.plan)
            batches = _whole_batches(connection, row.number, plan)
            stop = plan.rows(batches - 1).stop if batches else 0
            samples = _read_samples(connection, row.number, _samples.c.row < stop)
            finished = _outcomes.c.batch < batches
            outcomes = _read_outcomes(connection, row.number, plan, finished)
            units = [
                UnitRecord(item.batch, plan.stages[item.stage].key, _warnings(item), item.seconds)
                for item in connection.execute(
                    sql.select(_units)
                    .where(_units.c.audit == row.number, _units.c.batch < batches)
                    .order_by(_units.c.batch, _units.c.stage)
                )
            ]
        digest = digest_of_set([sample.digest for sample in samples])
        audit = replace(audit, origin=replace(audit.origin, data_sha256=digest))
        return Findings(audit, samples, outcomes, units, batches == plan.batches)


def _prepare_sqlite(engine: Engine) -> None:
    """Readers beside the writer, nothing lost with power, and foreign keys that hold."""

    @sql.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin as below
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={_BUSY_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @sql.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # One who reads first and writes then would be refused if another wrote in between.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _find(connection: Connection, audit_id: str, *, lock: bool = False) -> Row[Any]:
    query = sql.select(_audits).where(_audits.c.id == audit_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"there is no audit {audit_id[:80]!r}")
    return row


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
        total=units_of(plan),
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


def units_of(plan: Plan) -> int:
    """How many units a plan has."""
    return plan.batches * len(plan.stages) - (plan.batches - 1) * sum(
        stage.first_batch for stage in plan.stages
    )


def _insert(connection: Connection, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), list(rows))


def _broken(audit: Audit, unit: Unit, outcomes: Sequence[Outcome]) -> list[int]:
    """The rows that are broken at the largest radius of the stage's threat model."""
    stage: Stage = audit.plan.stages[unit.stage]
    radius = max(
        (
            epsilon
            for threat in audit.spec.threats
            if threat.norm == stage.norm
            for epsilon in threat.epsilons
        ),
        default=None,
    )
    if stage.norm is None or radius is None:
        return []
    return [
        outcome.row
        for outcome in outcomes
        if outcome.confirmed and within(outcome.distance(stage.norm), radius)
    ]


def _fell(connection: Connection, number: int, rows: Sequence[int]) -> int:
    """How many of these rows stood so far; none does from now on."""
    if not rows:
        return 0
    columns = _samples.c
    return connection.execute(
        _samples.update()
        .where(columns.audit == number, columns.row.in_(rows), columns.standing)
        .values(standing=False)
    ).rowcount


def _whole_batches(connection: Connection, number: int, plan: Plan) -> int:
    """How many batches are done, of which the first ones are always done first."""
    done = connection.scalar(
        sql.select(sql.func.count()).select_from(_units).where(_units.c.audit == number)
    )
    of_first, of_next = len(plan.stages), sum(not stage.first_batch for stage in plan.stages)
    return 0 if done is None or done < of_first else 1 + (done - of_first) // of_next


def _read_samples(
    connection: Connection, number: int, which: sql.ColumnElement[bool]
) -> list[Sample]:
    columns = _samples.c
    query = (
        sql.select(columns.row, columns.label, columns.digest, columns.decision, columns.confidence)
        .where(columns.audit == number, which)
        .order_by(columns.row)
    )
    return [Sample(*row) for row in connection.execute(query)]


def _read_outcomes(
    connection: Connection, number: int, plan: Plan, which: sql.ColumnElement[bool]
) -> list[Outcome]:
    columns = _outcomes.c
    names = ("claimed", "confirmed", "queries", "digest", "decision", *_FLOATS)
    query = (
        sql.select(columns.row, columns.stage, *(columns[name] for name in names))
        .where(columns.audit == number, which)
        .order_by(columns.batch, columns.stage, columns.row)
    )
    keys = [stage.key for stage in plan.stages]
    return [Outcome(row, keys[stage], *values) for row, stage, *values in connection.execute(query)]


def _warnings(row: Row[Any]) -> tuple[Warned, ...]:
    return tuple(Warned(item["message"], tuple(item["rows"])) for item in json.loads(row.warnings))


def _brief(error: Exception) -> str:
    """The first line, without SQLAlchemy's own links and statements."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0][:200]

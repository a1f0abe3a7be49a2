"""The database of audits: its tables, and transactions on them.

SQLite or any other that SQLAlchemy knows. What is committed survives the loss of the process and
of power.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sqlalchemy as sql
from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Integer, MetaData, Text
from sqlalchemy.engine import Connection, Engine

from ..errors import FailedPrecondition, InvalidRequest, Unavailable

VERSION = 1  # of the tables
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
_versions = sql.Table("audit_schema", _META, sql.Column("version", Integer, nullable=False))
audits = sql.Table(
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


samples = sql.Table(
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
units = sql.Table(
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
FLOATS = ("confidence", "margin", "l0", "l1", "l2", "linf")
outcomes = sql.Table(
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
    *(sql.Column(name, _Number) for name in FLOATS),
)


class Database:
    """A database with the tables of this version. Every method blocks.

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
            self._check_version()
        except BaseException as error:
            self._engine.dispose()
            if not isinstance(error, sql.exc.SQLAlchemyError):
                raise
            raise FailedPrecondition(
                f"audit_database: the database cannot be opened ({_brief(error)})"
            ) from None

    def _check_version(self) -> None:
        """Make the tables, or see that they are of this version."""
        with self._begin(writes=True) as connection:
            _META.create_all(connection)
            found = connection.scalars(sql.select(_versions.c.version)).all()
            if not found:
                connection.execute(_versions.insert().values(version=VERSION))
            elif found != [VERSION]:
                raise FailedPrecondition(
                    f"audit_database: its tables are of version {found[0]}, and this server needs "
                    f"version {VERSION}; name another database, or run the server that made it"
                )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        """All or nothing of what is done in it.

        Args:
            writes: not only reads.

        Raises:
            Unavailable: the database fails; another trial may help.
        """
        try:
            with self._begin(writes=writes) as connection:
                yield connection
        except (sql.exc.OperationalError, sql.exc.InterfaceError) as error:
            raise Unavailable(f"the database of the audits fails ({_brief(error)})") from None

    def _begin(self, *, writes: bool) -> AbstractContextManager[Connection]:
        return self._engine.execution_options(**{_WRITES: writes}).begin()


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


def _brief(error: Exception) -> str:
    """The first line, without SQLAlchemy's own links and statements."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0][:200]

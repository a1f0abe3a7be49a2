"""Databases that stores are tested with."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_databases import cluster, lacks, new_database

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Path]:
    """The socket of a PostgreSQL cluster of this session."""
    if reason := lacks():
        pytest.skip(reason)
    with cluster() as socket:
        yield socket


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'audits.sqlite'}"
    return new_database(request.getfixturevalue("postgresql"), f"audits{next(_numbers)}")

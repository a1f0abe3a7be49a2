"""Databases that stores are tested with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_databases import cluster, emptied, lacks


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
    return emptied(request.getfixturevalue("postgresql"))

"""A throw-away PostgreSQL cluster on a Unix socket."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "audits"


def lacks() -> str:
    """Why there can be no cluster here; empty where there can."""
    if _programs() is None:
        return "PostgreSQL's initdb is not installed"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL refuses to run as root, and there is no setpriv"
    return ""


def _programs() -> Path | None:
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


@contextmanager
def cluster() -> Iterator[Path]:
    """A running cluster; yields the folder of its socket."""
    programs = _programs()
    assert programs is not None
    # Socket paths are short: pytest's folders may be too long for one.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    unprivileged: list[str] = []
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
        unprivileged = ["setpriv", "--reuid=nobody", "--clear-groups"]

    def run(program: str, *arguments: str) -> None:
        command = [*unprivileged, str(programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=120)

    data = str(folder / "data")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    try:
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield folder
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(socket: Path, name: str) -> str:
    """The URL of an empty database."""
    import psycopg

    with psycopg.connect(f"host={socket} user=postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return f"postgresql+psycopg://postgres@/{name}?host={socket}"

"""A throw-away PostgreSQL cluster on a Unix socket."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    data, options = str(folder / "data"), ["-c", "listen_addresses=", "-c", "fsync=off"]
    make = [str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N"]
    serve = [str(programs / "postgres"), "-D", data, "-k", str(folder), *options]
    try:
        subprocess.run([*unprivileged, *make], check=True, capture_output=True, cwd=folder)
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([*unprivileged, *serve], cwd=folder, stderr=log)
        try:
            _await_answer(server, folder)
            yield folder
        finally:
            server.send_signal(signal.SIGQUIT)  # at once
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await_answer(server: "subprocess.Popen[bytes]", socket: Path) -> None:
    import psycopg

    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"host={socket} user=postgres").close()
        except psycopg.OperationalError:
            assert server.poll() is None, (socket / "log").read_text()
            assert time.monotonic() < until, "PostgreSQL does not answer"
            time.sleep(0.05)
        else:
            return


def emptied(socket: Path) -> str:
    """The URL of the cluster's database, without any table."""
    import psycopg

    with psycopg.connect(f"host={socket} user=postgres", autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return f"postgresql+psycopg://postgres@/postgres?host={socket}"

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sandbox_child import in_child, needs_landlock, needs_seccomp, outcome, system_call

from interpret_server.engine.sandbox import Policy, installation

REFUSED = ("EPERM", "EACCES")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside of every allowed folder."""
    path = tmp_path / "outside" / "secret.txt"
    path.parent.mkdir()
    path.write_text("secret")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that may be read, with a file in it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.pt").write_text("weights")
    return folder


@needs_landlock
@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/proc/1/cmdline", "/"])
def test_the_system_s_files_cannot_be_read(path: str) -> None:
    assert outcome(lambda: os.open(path, os.O_RDONLY)) in REFUSED


@needs_landlock
def test_other_files_cannot_be_read_or_listed(secret: Path) -> None:
    assert outcome(lambda: secret.read_text()) in REFUSED
    assert outcome(lambda: os.listdir(secret.parent)) in REFUSED


def test_an_allowed_folder_and_an_allowed_file_can_be_read(model: Path, secret: Path) -> None:
    policy = Policy(read=(model, secret))
    assert outcome(lambda: (model / "model.pt").read_text(), policy) == "weights"
    assert outcome(lambda: os.listdir(model), policy) == ["model.pt"]
    assert outcome(secret.read_text, policy) == "secret"


@needs_landlock
def test_an_allowed_file_does_not_open_its_folder(model: Path) -> None:
    other = model / "other.pt"
    other.write_text("other")
    assert outcome(other.read_text, Policy(read=(model / "model.pt",))) in REFUSED


@needs_landlock
def test_links_do_not_lead_out_of_an_allowed_folder(model: Path, secret: Path) -> None:
    (model / "link").symlink_to(secret)
    (model / "up").symlink_to(secret.parent)
    policy = Policy(read=(model,))
    assert outcome(lambda: (model / "link").read_text(), policy) in REFUSED
    assert outcome(lambda: (model / "up" / "secret.txt").read_text(), policy) in REFUSED
    assert outcome(lambda: (model / ".." / "outside/secret.txt").read_text(), policy) in REFUSED


@needs_landlock
@pytest.mark.parametrize("entry", ["exe", "cwd", "fd/0", "ns/net"])
def test_other_processes_show_nothing_of_themselves(entry: str) -> None:
    assert outcome(lambda: os.readlink(f"/proc/{os.getppid()}/{entry}")) in REFUSED
    assert outcome(lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY)) in REFUSED


@needs_landlock
def test_a_descriptor_of_a_path_cannot_be_opened_again(secret: Path) -> None:
    def reopen() -> int:
        handle = os.open(secret, os.O_PATH)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)

    assert outcome(reopen) in REFUSED


@needs_landlock
def test_a_raw_system_call_opens_nothing_either(secret: Path) -> None:
    from interpret_server.engine.sandbox.numbers import NUMBERS
    from interpret_server.engine.sandbox.system import machine

    here = machine()
    if here is None or (number := NUMBERS["openat"][here.column]) is None:
        pytest.skip("the numbers of this processor's system calls are not known")
    path = os.fsencode(secret)
    assert isinstance(in_child(lambda: system_call(number, -100, path, os.O_RDONLY)), int)
    assert outcome(lambda: system_call(number, -100, path, os.O_RDONLY)) in REFUSED


WRITES: dict[str, Callable[[Path], object]] = {
    "write": lambda path: path.write_text("changed"),
    "append": lambda path: path.open("a"),
    "empty": lambda path: os.open(path, os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 0),
    "create": lambda path: (path.parent / "new").touch(),
    "create unnamed": lambda path: os.open(path.parent, os.O_TMPFILE | os.O_RDWR),
    "delete": os.remove,
    "rename": lambda path: path.rename(path.parent / "new"),
    "link": lambda path: os.link(path, path.parent / "new"),
    "symbolic link": lambda path: os.symlink(path, path.parent / "new"),
    "make a folder": lambda path: os.mkdir(path.parent / "new"),
    "remove a folder": lambda path: os.rmdir(path.parent),
    "make a pipe": lambda path: os.mkfifo(path.parent / "new"),
    "change the mode": lambda path: os.chmod(path, 0o777),
    "change the owner": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "change the times": os.utime,
    "set an attribute": lambda path: os.setxattr(path, "user.name", b"value"),
}


@needs_seccomp
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("allowed", [True, False])
def test_nothing_can_be_changed(name: str, allowed: bool, model: Path) -> None:
    path = model / "model.pt"
    before = os.stat(path)
    policy = Policy(read=(model,) if allowed else (), file_bytes=1 << 20)
    assert outcome(lambda: WRITES[name](path), policy) in REFUSED
    after = os.stat(path)
    assert os.listdir(model) == ["model.pt"]
    assert path.read_text() == "weights"
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime_ns,
    )


@needs_landlock
@pytest.mark.parametrize("name", ["write", "append", "create", "delete", "rename", "link"])
def test_landlock_alone_refuses_changes(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpret_server.engine.sandbox.install", lambda program: None)
    assert outcome(lambda: WRITES[name](model / "model.pt"), Policy(read=(model,))) in REFUSED
    assert (model / "model.pt").read_text() == "weights"


@needs_seccomp
@pytest.mark.parametrize("name", WRITES)
def test_seccomp_alone_refuses_changes(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpret_server.engine.sandbox.restrict", lambda *paths: None)
    assert outcome(lambda: WRITES[name](model / "model.pt")) == "EPERM"
    assert (model / "model.pt").read_text() == "weights"


def test_the_installation_holds_packages_and_loaded_sources_but_no_working_folder() -> None:
    import interpret_server

    paths = installation()
    package = Path(interpret_server.__file__).parent
    assert any(package.is_relative_to(path) for path in paths)
    assert any(Path(os.__file__).resolve().is_relative_to(path) for path in paths)
    assert all(path.is_absolute() and path.exists() for path in paths)
    for private in (Path.cwd(), Path.home(), Path("/etc"), Path("/tmp"), Path("/proc")):
        assert private not in paths
        assert not any(private.is_relative_to(path) for path in paths)


def test_no_path_of_the_installation_lies_in_another() -> None:
    paths = installation()
    assert not [(a, b) for a in paths for b in paths if a != b and a.is_relative_to(b)]


def test_modules_can_be_imported_after_confinement() -> None:
    def import_something() -> str:
        import colorsys
        import zoneinfo

        return f"{colorsys.__name__} {zoneinfo.ZoneInfo('Europe/Berlin').key}"

    if not Path("/usr/share/zoneinfo/Europe/Berlin").exists():
        pytest.skip("no time zones are installed")
    assert outcome(import_something) == "colorsys Europe/Berlin"

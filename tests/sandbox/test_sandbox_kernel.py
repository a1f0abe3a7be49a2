"""What is said and done where a kernel lacks a protection; its answers are faked."""

import errno
import os
from collections.abc import Callable

import pytest
from sandbox_child import in_child, needs_landlock, needs_seccomp, outcome

from interpret_server.engine import sandbox
from interpret_server.engine.sandbox import Policy, missing
from interpret_server.engine.sandbox.system import landlock_abi


def refusing(code: int) -> Callable[..., int]:
    def answer(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return answer


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the kernel answers; by default it has everything."""

    def fake(*, abi: Callable[[], int] = lambda: 7, seccomp: Callable[[], object] = bool) -> None:
        monkeypatch.setattr(sandbox, "landlock_abi", abi)
        monkeypatch.setattr(sandbox, "probe_seccomp", seccomp)

    fake()
    return fake


def test_nothing_is_missing_on_a_new_kernel_nor_on_the_first_with_landlock(
    kernel: Callable[..., None],
) -> None:
    if sandbox.machine() is None:
        pytest.skip("there is no filter for this processor")
    assert missing() == ()
    kernel(abi=lambda: 1)  # the filter of system calls makes up for later versions
    assert missing() == ()


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSYS, "since 5.13"),
        (errno.EOPNOTSUPP, "lsm="),
        (errno.EPERM, "container"),
    ],
)
def test_missing_landlock_is_explained(code: int, hint: str, kernel: Callable[..., None]) -> None:
    kernel(abi=refusing(code))
    (sentence,) = [text for text in missing() if text.startswith("Landlock")]
    assert hint in sentence
    assert "could read every file" in sentence


@pytest.mark.parametrize(("code", "hint"), [(errno.EINVAL, "built"), (errno.EPERM, "container")])
def test_missing_seccomp_is_explained(code: int, hint: str, kernel: Callable[..., None]) -> None:
    if sandbox.machine() is None:
        pytest.skip("there is no filter for this processor")
    kernel(seccomp=refusing(code))
    (sentence,) = missing()
    assert sentence.startswith("seccomp is missing")
    assert hint in sentence


def test_without_seccomp_an_old_landlock_is_reported(kernel: Callable[..., None]) -> None:
    kernel(abi=lambda: 3, seccomp=refusing(errno.EINVAL))
    assert [sentence for sentence in missing() if "version here is 3" in sentence]


def test_a_processor_without_a_filter_is_reported(
    kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "machine", lambda: None)
    assert os.uname().machine in missing()[0]


@needs_seccomp
def test_what_is_there_is_applied_where_landlock_is_missing(kernel: Callable[..., None]) -> None:
    kernel(abi=refusing(errno.ENOSYS))
    assert outcome(lambda: len(os.listdir("/etc")) > 0) is True
    assert outcome(lambda: os.mkdir("/tmp/never")) == "EPERM"
    assert outcome(os.fork) == "EPERM"


@needs_landlock
def test_what_is_there_is_applied_where_seccomp_is_missing(kernel: Callable[..., None]) -> None:
    kernel(seccomp=refusing(errno.EINVAL))
    assert outcome(lambda: os.listdir("/etc")) == "EACCES"
    assert outcome(lambda: os.mkdir("/tmp/never")) == "EACCES"


@pytest.mark.parametrize("abi", range(1, 8))
@needs_landlock
def test_every_version_of_landlock_confines(
    abi: int, kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if abi > landlock_abi():
        pytest.skip(f"the kernel's Landlock is older than version {abi}")
    kernel(abi=lambda: abi)
    monkeypatch.setattr("interpret_server.engine.sandbox.landlock.landlock_abi", lambda: abi)
    assert outcome(lambda: os.listdir("/etc")) == "EACCES"
    assert outcome(lambda: os.open(os.__file__, os.O_RDONLY) > 0) is True


@needs_seccomp
def test_a_protection_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpret_server.engine.sandbox.bpf.call", refusing(errno.EINVAL))
    answer = in_child(lambda: sandbox.confine(Policy()))
    assert "seccomp is there but could not be applied: Invalid argument." in answer

"""Runs functions in confined processes of their own."""

import ctypes
import errno
import faulthandler
import gc
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from interpret_server.engine.sandbox import Policy, confine, missing

_LACKING = " ".join(missing())
needs_landlock = pytest.mark.skipif("Landlock is missing" in _LACKING, reason=_LACKING)
needs_seccomp = pytest.mark.skipif("seccomp is missing" in _LACKING, reason=_LACKING)


def outcome(function: Callable[[], Any], policy: Policy | None = None) -> Any:
    """What the function returns (a JSON value), or the name of the error that it raises.

    An OSError gives its errno's name, a process that dies "signal" and the number.
    """

    def confined() -> Any:
        confine(policy or Policy())
        return function()

    return in_child(confined)


def in_child(function: Callable[[], Any]) -> Any:
    """`outcome` without confinement."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's threads do not matter here
        child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(function, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return json.loads(text)


def _answer(function: Callable[[], Any], writing: int) -> None:
    """Never returns."""
    gc.disable()  # what pytest's process left behind, such as gRPC's objects, is not this one's
    faulthandler.disable()
    try:
        try:
            value = function()
        except OSError as error:
            value = errno.errorcode.get(error.errno or 0, repr(error))
        except MemoryError:
            value = "MemoryError"
        except BaseException as error:
            value = repr(error)
        os.write(writing, json.dumps(value).encode())
    finally:
        os._exit(0)


def system_call(number: int, *arguments: int | bytes | None) -> int:
    """A raw system call; raises OSError as the kernel answers."""
    library = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result: int = library.syscall(ctypes.c_long(number), *wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result

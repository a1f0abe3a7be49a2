"""Filters of system calls as programs of the kernel's packet filter.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst and include/uapi/linux/bpf_common.h.
"""

import ctypes
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .numbers import Machine
from .system import SandboxError, call

KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW
_FAIL = 0x00050000  # SECCOMP_RET_ERRNO

_LOAD, _AND = 0x20, 0x54  # of 32 bits
_JUMP, _EQUAL, _ABOVE, _AT_LEAST = 0x05, 0x15, 0x25, 0x35
_RETURN = 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # marks the calls of a second table of x86_64, with numbers of its own

_SET_FILTER = 1  # SECCOMP_SET_MODE_FILTER
_SPEC_ALLOW = 1 << 2  # else Linux before 5.16 slows all that the process computes

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@dataclass(frozen=True)
class Check:
    """A condition on one argument: `(argument & mask) in values`, over its 32 low bits.

    Args:
        argument: 0 to 5.
        values: what it may be; or, with `refuse`, what it may not be.
        mask: which bits are looked at.
        refuse: turn the condition round.
        pointer: the 32 high bits must be zero as well.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    refuse: bool = False
    pointer: bool = False


@dataclass(frozen=True)
class Rule:
    """What happens to a system call.

    Args:
        error: the errno that it gives; 0 pretends that it was done.
        unless: if all of these hold, it is let through.
    """

    error: int
    unless: tuple[Check, ...] = ()


def assemble(machine: Machine, rules: Mapping[int, Rule], newest: int, unknown: int) -> bytes:
    """The program that enforces rules and allows what has none.

    A call of another architecture kills the process.

    Args:
        rules: by number.
        newest: calls above this number give the errno `unknown`.
    """
    program: list[Instruction] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine is Machine.X86_64:
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, KILL)]
    program += [(_ABOVE, 0, 1, newest), (_RETURN, 0, 0, _FAIL | unknown)]
    for number, rule in sorted(rules.items()):
        body = list(_body(rule))
        program += [(_EQUAL, 0, len(body), number), *body]
    program.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _body(rule: Rule) -> Iterable[Instruction]:
    failure = (_RETURN, 0, 0, _FAIL | rule.error)
    for check in rule.unless:
        offset = _ARGUMENTS + 8 * check.argument
        if check.pointer:
            yield (_LOAD, 0, 0, offset + 4)
            yield (_EQUAL, 1, 0, 0)
            yield failure
        yield (_LOAD, 0, 0, offset)
        if check.mask != 0xFFFFFFFF:
            yield (_AND, 0, 0, check.mask)
        left = len(check.values)
        for value in check.values:
            left -= 1
            # A match jumps past the other values and one more: the failure, or the jump over it.
            yield (_EQUAL, left + 1, 0, value & 0xFFFFFFFF)
        if check.refuse:
            yield (_JUMP, 0, 0, 1)
        yield failure
    yield (_RETURN, 0, 0, ALLOW if rule.unless else failure[3])


def install(program: bytes) -> None:
    """Filter every later system call of this thread and of all that it starts.

    Raises:
        SandboxError: the kernel refused the program.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    try:
        call("seccomp", _SET_FILTER, _SPEC_ALLOW, header)
    except OSError as error:
        raise SandboxError(
            f"seccomp is there but could not be applied: {error.strerror}."
        ) from error

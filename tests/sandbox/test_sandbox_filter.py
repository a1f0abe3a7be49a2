"""The program that the kernel runs, run here by a small interpreter for both architectures."""

import errno
import os
import signal
import struct

import pytest

from interpret_server.engine.sandbox.bpf import ALLOW, KILL, Check, Rule, assemble
from interpret_server.engine.sandbox.numbers import NEWEST, NUMBERS, Machine
from interpret_server.engine.sandbox.rules import REFUSED, refusals

FAIL = 0x00050000
PROCESS = 4321
UNTOUCHED = {Machine.X86_64: (0, 1, 9, 202), Machine.AARCH64: (63, 64, 222, 98)}  # read, write, ...


def run(program: bytes, machine: int, number: int, *arguments: int) -> int:
    """The filter's verdict; follows the kernel's documentation of classic BPF."""
    padded = [value & (1 << 64) - 1 for value in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = struct.pack("<IIQ6Q", number, machine, 0, *padded)
    instructions = [
        struct.unpack_from("=HBBI", program, offset) for offset in range(0, len(program), 8)
    ]
    position, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x05:
            position += operand
        elif code == 0x06:
            return operand
        else:
            holds = {
                0x15: accumulator == operand,
                0x25: accumulator > operand,
                0x35: accumulator >= operand,
            }[code]
            position += if_true if holds else if_false


class Filter:
    """The verdicts of the sandbox's filter on one architecture."""

    def __init__(self, machine: Machine, *, devices: bool = False) -> None:
        self.machine = machine
        rules = refusals(machine, PROCESS, devices=devices)
        self.program = assemble(machine, rules, NEWEST, errno.ENOSYS)

    def __call__(self, name: str, *arguments: int) -> int:
        number = NUMBERS[name][self.machine.column]
        if number is None:
            pytest.skip(f"{name} does not exist on {self.machine.value}")
        return run(self.program, self.machine.audit, number, *arguments)


@pytest.fixture(params=list(Machine), ids=lambda machine: machine.value)
def verdict(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


def test_every_refused_call_fails_on_every_machine(verdict: Filter) -> None:
    for name in REFUSED:
        if NUMBERS[name][verdict.machine.column] is not None:
            assert verdict(name) == FAIL | errno.EPERM, name
            assert verdict(name, *[2**64 - 1] * 6) == FAIL | errno.EPERM, name


def test_what_computing_needs_is_allowed(verdict: Filter) -> None:
    for number in UNTOUCHED[verdict.machine]:
        assert run(verdict.program, verdict.machine.audit, number) == ALLOW


def test_calls_of_another_architecture_kill(verdict: Filter) -> None:
    for audit in {0xC000003E, 0xC00000B7, 0x40000003, 0x40000028} - {verdict.machine.audit}:
        assert run(verdict.program, audit, 1) == KILL


def test_the_second_table_of_x86_64_kills() -> None:
    program = Filter(Machine.X86_64).program
    for number in (0, 1, 56, 520):
        assert run(program, Machine.X86_64.audit, 0x40000000 | number) == KILL
        assert run(program, Machine.X86_64.audit, 0xFFFFFFFF - number) == KILL


def test_newer_calls_are_unknown(verdict: Filter) -> None:
    audit = verdict.machine.audit
    assert run(verdict.program, audit, NEWEST) == ALLOW
    assert run(verdict.program, audit, NEWEST + 1) == FAIL | errno.ENOSYS


def test_threads_pass_and_processes_do_not(verdict: Filter) -> None:
    thread = 0x3D0F00  # the flags that pthread_create sets
    assert verdict("clone", thread) == ALLOW
    assert verdict("clone", signal.SIGCHLD) == FAIL | errno.EPERM
    assert verdict("clone", 0x4111) == FAIL | errno.EPERM  # vfork
    assert verdict("clone", thread | 0x20000) == FAIL | errno.EPERM  # a mount namespace
    assert verdict("clone3") == FAIL | errno.ENOSYS


@pytest.mark.parametrize("name", ["kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"])
def test_only_the_process_itself_is_signalled(name: str, verdict: Filter) -> None:
    assert verdict(name, PROCESS) == ALLOW
    assert verdict(name, PROCESS | 7 << 32) == ALLOW  # the kernel reads 32 bits
    for other in (PROCESS + 1, 1, 0, -1, -PROCESS):
        assert verdict(name, other) == FAIL | errno.EPERM


@pytest.mark.parametrize(("name", "position"), [("open", 1), ("openat", 2)])
def test_files_are_opened_for_reading_alone(name: str, position: int, verdict: Filter) -> None:
    def opened(flags: int, check: Filter = verdict) -> int:
        return check(name, *[0] * position, flags)

    assert opened(os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, 3, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE | os.O_RDWR):
        assert opened(flags) == FAIL | errno.EPERM
    devices = Filter(verdict.machine, devices=True)
    assert opened(os.O_RDWR | os.O_CLOEXEC, devices) == ALLOW
    assert opened(os.O_RDWR | os.O_CREAT, devices) == FAIL | errno.EPERM


def test_limits_are_read_and_not_set(verdict: Filter) -> None:
    assert verdict("prlimit64", 0, 7, 0, 0x7FFF0000) == ALLOW
    assert verdict("prlimit64", PROCESS, 7, 0, 0x7FFF0000) == ALLOW
    assert verdict("prlimit64", 1, 7, 0, 0x7FFF0000) == FAIL | errno.EPERM
    assert verdict("prlimit64", 0, 7, 0x7FFF0000, 0) == FAIL | errno.EPERM
    assert verdict("prlimit64", 0, 7, 0x7F << 32, 0) == FAIL | errno.EPERM


def test_pinning_threads_is_done_in_appearance_only(verdict: Filter) -> None:
    assert verdict("sched_setaffinity", 0) == ALLOW
    assert verdict("sched_setaffinity", 77) == FAIL


def test_descriptors_are_not_controlled_beyond_asking(verdict: Filter) -> None:
    devices = Filter(verdict.machine, devices=True)
    is_a_terminal, type_a_character, set_owner, nvidia = 0x5401, 0x5412, 0x8901, 0xC020462A
    assert verdict("ioctl", 1, is_a_terminal) == devices("ioctl", 1, is_a_terminal) == ALLOW
    assert verdict("ioctl", 1, nvidia) == FAIL | errno.EPERM
    assert devices("ioctl", 1, nvidia) == ALLOW
    for harmful in (type_a_character, set_owner):
        assert devices("ioctl", 1, harmful) == verdict("ioctl", 1, harmful) == FAIL | errno.EPERM


def test_every_jump_lands_inside_the_program(verdict: Filter) -> None:
    count = len(verdict.program) // 8
    assert count <= 4096  # BPF_MAXINSNS
    for index in range(count):
        code, if_true, if_false, operand = struct.unpack_from("=HBBI", verdict.program, 8 * index)
        if code in (0x15, 0x25, 0x35):
            assert index + 1 + max(if_true, if_false) < count
        elif code == 0x05:
            assert index + 1 + operand < count


@pytest.mark.parametrize("refuse", [False, True])
def test_a_check_of_several_values(refuse: bool) -> None:
    rule = Rule(errno.EPERM, (Check(1, (3, 5, 9), mask=0xFF, refuse=refuse), Check(0, (1, 2))))
    program = assemble(Machine.X86_64, {10: rule}, NEWEST, errno.ENOSYS)
    for first in range(4):
        for second in range(300):
            listed = (second & 0xFF) in (3, 5, 9)
            passes = listed != refuse and first in (1, 2)
            expected = ALLOW if passes else FAIL | errno.EPERM
            assert run(program, Machine.X86_64.audit, 10, first, second) == expected

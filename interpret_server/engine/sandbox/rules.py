"""Which system calls a confined process may not make.

What Landlock refuses is refused here again wherever arguments alone tell, so that an old kernel,
or one without Landlock, still lets nothing be written, reached or signalled.
"""

import errno
import os

from .bpf import Check, Rule
from .numbers import NUMBERS, Machine

NETWORK = "socket socketpair connect bind listen accept accept4"
PROCESSES = """fork vfork execve execveat ptrace process_vm_readv process_vm_writev
    process_madvise process_mrelease pidfd_open pidfd_getfd pidfd_send_signal kcmp tkill
    setpgid setsid setpriority ioprio_set migrate_pages personality"""
IDENTITY = """setuid setgid setreuid setregid setgroups setresuid setresgid setfsuid setfsgid
    capset lsm_set_self_attr"""
LIMITS = "setrlimit"
MOUNTS = """mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsconfig
    fsmount fspick mount_setattr statmount listmount quotactl quotactl_fd swapon swapoff"""
FILES = """creat mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat unlink unlinkat
    rename renameat renameat2 truncate chmod fchmod fchmodat fchmodat2 chown fchown lchown
    fchownat utime utimes futimesat utimensat setxattr lsetxattr fsetxattr removexattr
    lremovexattr fremovexattr flock sync syncfs name_to_handle_at open_by_handle_at
    inotify_init inotify_init1 inotify_add_watch fanotify_init fanotify_mark"""
# Memory that outlives the process or that no limit counts, and ways around the page cache.
MEMORY = """shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl
    mq_open mq_unlink mq_notify mq_timedsend mq_timedreceive mq_getsetattr memfd_secret
    splice vmsplice tee"""
KERNEL = """bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    add_key request_key keyctl init_module finit_module delete_module kexec_load kexec_file_load
    reboot acct sethostname setdomainname vhangup syslog settimeofday clock_settime clock_adjtime
    adjtimex iopl ioperm modify_ldt uselib _sysctl sysfs lookup_dcookie nfsservctl"""
REFUSED = " ".join((NETWORK, PROCESSES, IDENTITY, LIMITS, MOUNTS, FILES, MEMORY, KERNEL)).split()

_THREAD = 0x00010000  # CLONE_THREAD
_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_SET_OWNER, _SET_SIGNAL, _SET_OWNER_EX, _SET_LEASE, _NOTIFY = 8, 10, 15, 1024, 1026  # fcntl
_SET_PARENT_DEATH_SIGNAL = 1  # prctl
# ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_HARMLESS_CONTROLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# TIOCSTI and TIOCLINUX type into a terminal, FIOSETOWN and SIOCSPGRP direct signals,
# FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR and FS_IOC_ENABLE_VERITY change files opened for reading.
_HARMFUL_CONTROLS = (0x5412, 0x541C, 0x8901, 0x8902, 0x40086602, 0x401C5820, 0x40806685)


def refusals(machine: Machine, process: int, *, devices: bool) -> dict[int, Rule]:
    """What to refuse, by the number of the system call.

    Args:
        process: the identifier of the process, which may signal itself.
        devices: device files are written and controlled.
    """
    named = {name: Rule(errno.EPERM) for name in REFUSED} | _examined(process, devices=devices)
    return {
        number: rule
        for name, rule in named.items()
        if (number := NUMBERS[name][machine.column]) is not None
    }


def _examined(process: int, *, devices: bool) -> dict[str, Rule]:
    def only(*checks: Check) -> Rule:
        return Rule(errno.EPERM, checks)

    to_itself = only(Check(0, (process,)))
    this_thread = only(Check(0, (0,)))
    opening = os.O_CREAT | os.O_TRUNC if devices else _WRITING
    controls = Check(1, _HARMFUL_CONTROLS, refuse=True) if devices else Check(1, _HARMLESS_CONTROLS)
    return {
        # The C library then asks `clone` for its threads, whose flags a filter can see.
        "clone3": Rule(errno.ENOSYS),
        "clone": only(Check(0, (_THREAD,), mask=_THREAD | _NAMESPACES)),
        "kill": to_itself,
        "tgkill": to_itself,
        "rt_sigqueueinfo": to_itself,
        "rt_tgsigqueueinfo": to_itself,
        "prlimit64": only(Check(0, (0, process)), Check(2, (0,), pointer=True)),
        "sched_setscheduler": this_thread,
        "sched_setparam": this_thread,
        "sched_setattr": this_thread,
        "move_pages": this_thread,
        # It could pin other processes. Threads that pin themselves are told that they did.
        "sched_setaffinity": Rule(0, (Check(0, (0,)),)),
        "open": only(Check(1, (0,), mask=opening)),
        "openat": only(Check(2, (0,), mask=opening)),
        "openat2": Rule(errno.ENOSYS),  # its flags lie in memory, where a filter cannot see
        "fcntl": only(
            Check(1, (_SET_OWNER, _SET_SIGNAL, _SET_OWNER_EX, _SET_LEASE, _NOTIFY), refuse=True)
        ),
        "ioctl": only(controls),
        "prctl": only(Check(0, (_SET_PARENT_DEATH_SIGNAL,), refuse=True)),
    }

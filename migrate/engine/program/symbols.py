"""How to write the arguments of system calls, as strace does: names for flags, octal for modes, hex for addresses.

Only for people to read: a call or a flag that is not here is shown as numbers. Values are those of x86-64
(asm/fcntl.h, asm-generic/mman-common.h, linux/sched.h, asm/prctl.h and linux/prctl.h).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

_OPEN = {
    0o1: "O_WRONLY", 0o2: "O_RDWR", 0o100: "O_CREAT", 0o200: "O_EXCL", 0o400: "O_NOCTTY", 0o1000: "O_TRUNC",
    0o2000: "O_APPEND", 0o4000: "O_NONBLOCK", 0o4010000: "O_SYNC", 0o10000: "O_DSYNC", 0o20000: "O_ASYNC",
    0o40000: "O_DIRECT", 0o100000: "O_LARGEFILE", 0o20200000: "O_TMPFILE", 0o200000: "O_DIRECTORY",
    0o400000: "O_NOFOLLOW", 0o1000000: "O_NOATIME", 0o2000000: "O_CLOEXEC", 0o10000000: "O_PATH",
}  # fmt: skip
_PROT = {1: "PROT_READ", 2: "PROT_WRITE", 4: "PROT_EXEC", 0x01000000: "PROT_GROWSDOWN"}
_MAP = {
    0x03: "MAP_SHARED_VALIDATE", 0x01: "MAP_SHARED", 0x02: "MAP_PRIVATE", 0x10: "MAP_FIXED", 0x20: "MAP_ANONYMOUS",
    0x40: "MAP_32BIT", 0x100: "MAP_GROWSDOWN", 0x2000: "MAP_LOCKED", 0x4000: "MAP_NORESERVE", 0x8000: "MAP_POPULATE",
    0x20000: "MAP_STACK", 0x40000: "MAP_HUGETLB", 0x100000: "MAP_FIXED_NOREPLACE",
}  # fmt: skip
_REMAP = {1: "MREMAP_MAYMOVE", 2: "MREMAP_FIXED", 4: "MREMAP_DONTUNMAP"}
_CLONE = {
    0x80: "CLONE_NEWTIME", 0x100: "CLONE_VM", 0x200: "CLONE_FS", 0x400: "CLONE_FILES", 0x800: "CLONE_SIGHAND",
    0x10000: "CLONE_THREAD", 0x20000: "CLONE_NEWNS", 0x20000000: "CLONE_NEWPID",
}  # fmt: skip
_MADVISE = {
    0: "MADV_NORMAL", 1: "MADV_RANDOM", 2: "MADV_SEQUENTIAL", 3: "MADV_WILLNEED", 4: "MADV_DONTNEED", 8: "MADV_FREE",
    9: "MADV_REMOVE", 10: "MADV_DONTFORK", 12: "MADV_MERGEABLE", 14: "MADV_HUGEPAGE", 15: "MADV_NOHUGEPAGE",
    16: "MADV_DONTDUMP", 18: "MADV_WIPEONFORK", 22: "MADV_POPULATE_READ", 23: "MADV_POPULATE_WRITE",
    102: "MADV_GUARD_INSTALL",
}  # fmt: skip
_FCNTL = {
    0: "F_DUPFD", 1: "F_GETFD", 2: "F_SETFD", 3: "F_GETFL", 4: "F_SETFL", 8: "F_SETOWN", 10: "F_SETSIG",
    15: "F_SETOWN_EX", 1030: "F_DUPFD_CLOEXEC", 1031: "F_SETPIPE_SZ", 1032: "F_GETPIPE_SZ", 1033: "F_ADD_SEALS",
}  # fmt: skip
_PRCTL = {
    1: "PR_SET_PDEATHSIG", 4: "PR_SET_DUMPABLE", 8: "PR_SET_KEEPCAPS", 15: "PR_SET_NAME", 22: "PR_SET_SECCOMP",
    24: "PR_CAPBSET_DROP", 28: "PR_SET_SECUREBITS", 29: "PR_SET_TIMERSLACK", 35: "PR_SET_MM",
    36: "PR_SET_CHILD_SUBREAPER", 38: "PR_SET_NO_NEW_PRIVS", 41: "PR_SET_THP_DISABLE", 47: "PR_CAP_AMBIENT",
    0x53564D41: "PR_SET_VMA",
}  # fmt: skip
_ARCH_PRCTL = {
    0x1001: "ARCH_SET_GS", 0x1002: "ARCH_SET_FS", 0x1003: "ARCH_GET_FS", 0x1004: "ARCH_GET_GS",
    0x1022: "ARCH_GET_XCOMP_PERM", 0x1023: "ARCH_REQ_XCOMP_PERM", 0x2001: "ARCH_MAP_VDSO_X32",
    0x2002: "ARCH_MAP_VDSO_32", 0x2003: "ARCH_MAP_VDSO_64",
}  # fmt: skip
_PTRACE = {
    7: "PTRACE_CONT", 17: "PTRACE_DETACH", 0x4200: "PTRACE_SETOPTIONS", 0x4204: "PTRACE_GETREGSET",
    0x4205: "PTRACE_SETREGSET", 0x4206: "PTRACE_SEIZE", 0x4207: "PTRACE_INTERRUPT", 0x420A: "PTRACE_GETSIGMASK",
    0x420B: "PTRACE_SETSIGMASK",
}  # fmt: skip
_CLOCK = {0: "CLOCK_REALTIME", 1: "CLOCK_MONOTONIC", 7: "CLOCK_BOOTTIME", 8: "CLOCK_REALTIME_ALARM"}
_WHENCE = {0: "SEEK_SET", 1: "SEEK_CUR", 2: "SEEK_END", 3: "SEEK_DATA", 4: "SEEK_HOLE"}
_HOW = {0: "SIG_BLOCK", 1: "SIG_UNBLOCK", 2: "SIG_SETMASK"}
_EPOLL = {1: "EPOLL_CTL_ADD", 2: "EPOLL_CTL_DEL", 3: "EPOLL_CTL_MOD"}
_ITIMER = {0: "ITIMER_REAL", 1: "ITIMER_VIRTUAL", 2: "ITIMER_PROF"}

Writer = Callable[[int], str]


def number(value: int) -> str:
    """Small numbers in decimal, with their sign; large ones are addresses and sizes: hex."""
    signed = value - (1 << 64) if value >= 1 << 63 else value
    return str(signed) if -65536 < signed < 65536 else hex(value & 0xFFFF_FFFF_FFFF_FFFF)


def _flags(names: Mapping[int, str], zero: str = "0") -> Writer:
    by_width = sorted(names, key=lambda bit: (-bit.bit_count(), bit))  # the combined ones first

    def write(value: int) -> str:
        rest, chosen = value & 0xFFFF_FFFF_FFFF_FFFF, []
        for bits in by_width:
            if rest & bits == bits:
                chosen.append((bits, names[bits]))
                rest &= ~bits
        words = [name for _, name in sorted(chosen)] + ([hex(rest)] if rest else [])
        return "|".join(words) or zero

    return write


def _names(table: Mapping[int, str]) -> Writer:
    return lambda value: table.get(value, number(value))


def _open_flags(value: int) -> str:
    return ("" if value & 3 else "O_RDONLY|" if value else "O_RDONLY") + (_flags(_OPEN, "")(value) if value else "")


def _directory(value: int) -> str:
    return "AT_FDCWD" if value & 0xFFFF_FFFF == 0xFFFF_FF9C else number(value)


def _descriptor(value: int) -> str:
    return "-1" if value & 0xFFFF_FFFF == 0xFFFF_FFFF else number(value)


def _octal(value: int) -> str:
    return f"{value:#05o}".replace("0o", "0") if value else "0"


def _signal(value: int) -> str:
    try:
        return signal.Signals(value).name
    except ValueError:
        return f"SIGRT_{value - 32}" if 32 < value <= 64 else number(value)


_PROTECTION, _MAPPING, _CLOEXEC = _flags(_PROT, "PROT_NONE"), _flags(_MAP), _flags(_OPEN)

# Writers of the arguments of each call, in order; those left out are written as numbers.
ARGUMENTS: dict[str, tuple[Writer, ...]] = {
    "openat": (_directory, number, _open_flags, _octal),
    "mkdirat": (_directory, number, _octal),
    "mknodat": (_directory, number, _octal),
    "newfstatat": (_directory,),
    "unlinkat": (_directory,),
    "readlinkat": (_directory,),
    "linkat": (_directory, number, _directory),
    "fchmodat": (_directory, number, _octal),
    "fchmod": (number, _octal),
    "umask": (_octal,),
    "dup3": (number, number, _CLOEXEC),
    "pipe2": (number, _CLOEXEC),
    "eventfd2": (number, _CLOEXEC),
    "epoll_create1": (_CLOEXEC,),
    "inotify_init1": (_CLOEXEC,),
    "signalfd4": (_descriptor, number, number, _CLOEXEC),
    "timerfd_create": (_names(_CLOCK), _CLOEXEC),
    "timer_create": (_names(_CLOCK),),
    "clock_gettime": (_names(_CLOCK),),
    "clock_nanosleep": (_names(_CLOCK),),
    "setitimer": (_names(_ITIMER),),
    "getitimer": (_names(_ITIMER),),
    "lseek": (number, number, _names(_WHENCE)),
    "fcntl": (number, _names(_FCNTL)),
    "epoll_ctl": (number, _names(_EPOLL)),
    "mmap": (number, number, _PROTECTION, _MAPPING, _descriptor),
    "mprotect": (number, number, _PROTECTION),
    "mremap": (number, number, number, _flags(_REMAP)),
    "madvise": (number, number, _names(_MADVISE)),
    "prctl": (_names(_PRCTL),),
    "arch_prctl": (_names(_ARCH_PRCTL),),
    "ptrace": (_names(_PTRACE),),
    "unshare": (_flags(_CLONE),),
    "setns": (number, _flags(_CLONE)),
    "rt_sigaction": (_signal,),
    "rt_sigprocmask": (_names(_HOW),),
    "rt_sigqueueinfo": (number, _signal),
    "rt_tgsigqueueinfo": (number, number, _signal),
    "kill": (number, _signal),
    "tgkill": (number, number, _signal),
}


def writer(call: str, position: int) -> Writer:
    """How to write that argument of a system call when it is a number."""
    writers = ARGUMENTS.get(call, ())
    return writers[position] if position < len(writers) else number

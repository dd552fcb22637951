"""The system calls that Python 3.9 has no function for.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl(2)
ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000  # namespaces(7)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000  # mount(2)
MFD_CLOEXEC, MFD_EXEC = 0x1, 0x10  # memfd_create(2); MFD_EXEC: Linux 6.3

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> int:
    result = getattr(_libc, name)(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)


def set_pdeathsig(signal: int) -> None:
    """The signal that we get when the thread that forked us ends. An execve(2) keeps it."""
    _call("prctl", PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0)


def no_randomization() -> None:
    """What we execve(2) next has its mappings at the same addresses every time."""
    _call("personality", ctypes.c_ulong(_call("personality", ctypes.c_ulong(0xFFFFFFFF)) | ADDR_NO_RANDOMIZE))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _call("unshare", flags)


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    _call("setns", fd, flags)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """mount(2)."""
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)


def pidfd_getfd(pid: int, number: int) -> int:
    """A copy of a descriptor of another process (pidfd_getfd(2), Linux 5.6), close-on-exec."""
    pidfd = os.pidfd_open(pid)
    try:
        return _call("syscall", ctypes.c_long(438), pidfd, number, 0)
    finally:
        os.close(pidfd)


def executable_memfd(name: str) -> int:
    """A memfd that may be executed, also where the sysctl vm.memfd_noexec is set."""
    try:
        return os.memfd_create(name, MFD_CLOEXEC | MFD_EXEC)
    except OSError as error:
        if error.errno != 22:  # EINVAL: a kernel that does not know the flag, where every memfd may be executed
            raise
    return os.memfd_create(name, MFD_CLOEXEC)

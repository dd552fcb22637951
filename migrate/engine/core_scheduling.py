"""Core scheduling: which processes may run beside each other on one core (PR_SCHED_CORE of prctl(2), Linux 5.14).

A cookie is a number of this kernel's own, shared by those that may; a process with one is refused.
"""

from __future__ import annotations

import ctypes
import errno
import os

from migrate.engine.kernel.proc import Proc
from migrate.errors import Problem

_PR_SCHED_CORE, _GET, _THREAD = 62, 0, 0  # linux/prctl.h: PR_SCHED_CORE_GET, PR_SCHED_CORE_SCOPE_THREAD
_NONE = (errno.EINVAL, errno.ENODEV)  # a kernel without; a machine without SMT
_libc = ctypes.CDLL(None, use_errno=True)


def cookie(tid: int) -> int:
    """Of a thread; 0: none. OSError."""
    room = ctypes.c_uint64()
    if _libc.prctl(_PR_SCHED_CORE, _GET, tid, _THREAD, ctypes.byref(room)) == 0:
        return room.value
    number = ctypes.get_errno()
    if number in _NONE:
        return 0
    raise OSError(number, f"PR_SCHED_CORE_GET of thread {tid}: {os.strerror(number)}")


def problems(proc: Proc) -> list[Problem]:
    """Threads with a cookie."""
    found = []
    for tid in proc.tids():
        try:
            has = cookie(tid)
        except ProcessLookupError:
            continue  # it has ended since
        if has:
            what = "has a cookie of core scheduling (PR_SCHED_CORE), which cannot be moved yet"
            found.append(Problem(f"thread {tid}", what))
    return found

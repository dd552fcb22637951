"""Processes that wait in vfork(2) until their child executes a program or ends, which also posix_spawn(3) does.

Until then the thread sleeps where neither a signal nor a tracer wakes it (wait_for_vfork_done() in kernel/fork.c), and
the kernel gives its registers to nobody. So it can neither be stopped nor made again elsewhere: it is waited for,
before any of the others is stopped.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import words
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.errors import Problem, Refused

_CLONE_VFORK = 0x4000
_CLONE = 56  # system call
_THREADS = 17  # the word of stat, behind the name
_PATIENCE = 3.0  # seconds
_PAUSE = 0.002


def wait(processes: Sequence[Proc]) -> None:
    """Until none of them waits. Refused when one still does after three seconds."""
    deadline = time.monotonic() + _PATIENCE
    for proc in processes:
        while _waits(proc):
            if time.monotonic() > deadline:
                what = "it waits in vfork(2) until its child executes a program or ends, and cannot be stopped"
                raise Refused([Problem(f"pid {proc.pid}", what, "wait for that")])
            time.sleep(_PAUSE)


def _waits(proc: Proc) -> bool:
    try:
        its = words(proc.text("stat"))
        if its[_THREADS] == "1":  # mostly: one file to be read
            return its[0] == "D" and _is_in_vfork(proc, proc.pid)
        return any(_is_in_vfork(proc, tid) for tid in proc.tids())
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


def _is_in_vfork(proc: Proc, tid: int) -> bool:
    if words(proc.text(f"task/{tid}/stat"))[0] != "D":
        return False
    fields = proc.text(f"task/{tid}/syscall").split()
    if not fields[0].isdigit():  # "running"
        return False
    number, first = int(fields[0]), int(fields[1], 16)
    if number == NUMBERS["clone3"]:
        with open(f"/proc/{proc.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(first)
            first = struct.unpack("<Q", memory.read(8))[0]
    return number == NUMBERS["vfork"] or (number in (_CLONE, NUMBERS["clone3"]) and bool(first & _CLONE_VFORK))

"""What tells one process, and one program of it, from the next that has its number."""

from __future__ import annotations

from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import PF_EXITING, words

Mark = tuple[int, ...]


def mark_of(pid: int) -> Mark:
    """What tells one program of a process from the next: when it was started, and where the kernel put what it was
    started with (the last changes with prctl(PR_SET_MM) too: then it is begun anew for nothing)."""
    with Proc(pid) as proc:
        its = words(proc.text("stat"))
    # One that is ending has no memory any more before it is a zombie (exit_mm() in do_exit(), kernel/exit.c).
    if its[0] in "ZX" or int(its[6]) & PF_EXITING:
        raise ProcessLookupError(pid)
    return int(its[19]), int(its[23]), int(its[24]), int(its[25])


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        mark_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True

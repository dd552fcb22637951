"""What tells one process, and one program of it, from the next that has its number."""

from __future__ import annotations

import time

from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import words

Mark = tuple[int, ...]
_VSIZE = 20  # the word of stat, behind the name
_LAST_WORDS, _PAUSE = 0.5, 0.0005  # seconds


def mark_of(pid: int) -> Mark:
    """What tells one program of a process from the next: when it was started, and where the kernel put what it was
    started with (the last changes with prctl(PR_SET_MM) too: then it is begun anew for nothing)."""
    deadline = time.monotonic() + _LAST_WORDS
    with Proc(pid) as proc:
        its = words(proc.text("stat"))
        while its[_VSIZE] == "0" and its[0] not in "ZX" and time.monotonic() < deadline:
            time.sleep(_PAUSE)  # it has no memory any more: it is ending, and a zombie soon
            its = words(proc.text("stat"))
    if its[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(its[19]), int(its[23]), int(its[24]), int(its[25])


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        mark_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True

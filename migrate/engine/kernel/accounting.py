"""/proc/PID/limits, /proc/PID/timers and /proc/PID/auxv (proc_pid_limits(5), proc_pid_timers(5), getauxval(3))."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from migrate.engine.kernel.procformat import ProcFormatError

RLIM_INFINITY = (1 << 64) - 1

# In the order of their numbers (asm-generic/resource.h), which is also the order of the file (lnames, fs/proc/base.c).
RESOURCES: dict[str, int] = {
    "Max cpu time": 0,
    "Max file size": 1,
    "Max data size": 2,
    "Max stack size": 3,
    "Max core file size": 4,
    "Max resident set": 5,
    "Max processes": 6,
    "Max open files": 7,
    "Max locked memory": 8,
    "Max address space": 9,
    "Max file locks": 10,
    "Max pending signals": 11,
    "Max msgqueue size": 12,
    "Max nice priority": 13,
    "Max realtime priority": 14,
    "Max realtime timeout": 15,
}
_LIMIT = re.compile(r"(Max [a-z ]+?) +(unlimited|\d+) +(unlimited|\d+) *(\w+)? *")
_TIMER = re.compile(
    r"ID: (\d+)\nsignal: (\d+)/([0-9a-f]+)\nnotify: (signal|none|thread)/(pid|tid)\.(\d+)\nClockID: (-?\d+)\n"
)
_AUX = struct.Struct("<QQ")


class Limit(NamedTuple):
    soft: int  # RLIM_INFINITY for "unlimited"
    hard: int


class PosixTimer(NamedTuple):
    """One timer_create(2) timer. What it is set to only the task itself can ask (timer_gettime)."""

    id: int
    signal: int
    value: int  # sigev_value, as a pointer
    notify: str  # "signal", "none" or "thread"
    thread: bool  # SIGEV_THREAD_ID: `target` is a thread
    target: int
    clock: int


def limits(text: str) -> dict[int, Limit]:
    """Resource number -> limit."""
    lines = text.removesuffix("\n").split("\n")
    if not lines[0].startswith("Limit "):
        raise ProcFormatError("limits", f"no heading: {lines[0]!r}")
    found: dict[int, Limit] = {}
    for line in lines[1:]:
        match = _LIMIT.fullmatch(line)
        if match is None or match[1] not in RESOURCES:
            raise ProcFormatError("limits", f"not a limit: {line!r}")
        soft, hard = (RLIM_INFINITY if word == "unlimited" else int(word) for word in (match[2], match[3]))
        found[RESOURCES[match[1]]] = Limit(soft, hard)
    missing = [name for name, resource in RESOURCES.items() if resource not in found]
    if missing:
        raise ProcFormatError("limits", f"no line {missing[0]!r}")
    return found


def timers(text: str) -> list[PosixTimer]:
    """The POSIX timers of a process. Needs a kernel with CONFIG_CHECKPOINT_RESTORE."""
    found: list[PosixTimer] = []
    position = 0
    while position < len(text):
        match = _TIMER.match(text, position)
        if match is None:
            raise ProcFormatError("timers", f"not a timer: {text[position:position + 120]!r}")
        ident, signal, value, notify, kind, target, clock = match.groups()
        found.append(
            PosixTimer(int(ident), int(signal), int(value, 16), notify, kind == "tid", int(target), int(clock))
        )
        position = match.end()
    return found


def auxv(content: bytes) -> list[tuple[int, int]]:
    """The auxiliary vector (type, value), without the AT_NULL that ends it."""
    if len(content) % _AUX.size:
        raise ProcFormatError("auxv", f"{len(content)} bytes, not a multiple of {_AUX.size}")
    found: list[tuple[int, int]] = []
    for kind, value in _AUX.iter_unpack(content):
        if kind == 0:
            return found
        found.append((kind, value))
    if found:
        raise ProcFormatError("auxv", "no AT_NULL at the end")
    return found

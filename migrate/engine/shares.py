"""What the processes of a tree share because of clone(2): found by kcmp(2).

kcmp tells two kernel objects of a kind apart, and puts them in an order; also where there is none: of a process that
has never chosen an I/O priority, or operated on a semaphore with SEM_UNDO, it compares a null pointer. So what equals
that of a process which has just been made, with nothing of its own, is not shared.

What is shared can only be given away at the birth of a process. So a process that was met alone stays alone until
another one is born, and what was found once is only looked at to see whether somebody has left (unshare(2),
execve(2)).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cmp_to_key

from migrate.engine.kernel.prctl import PR_SET_PDEATHSIG
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.program import OpKind, Program
from migrate.pie import local
from migrate.pie.calls import Calls

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_IO = (
    0x100, 0x200, 0x400, 0x800, 0x40000, 0x80000000,
)  # fmt: skip
SIGKILL, WALL = 9, 0x40000000
_STACK = 16 << 10
_FEW = 8  # processes that are put in their place one by one
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_SHIFT = 1, 13


@dataclass(frozen=True)
class Kind:
    """``name``: of the field of `Shares`; ``kcmp``: of linux/kcmp.h; ``flag``: of clone(2); ``leaves``: whether
    unshare(2) takes a process out of what others share with it."""

    name: str
    kcmp: int
    flag: int
    words: str
    leaves: bool = False
    may_be_null: bool = False


MEMORY = Kind("memory", 1, CLONE_VM, "memory (CLONE_VM)")
ACTIONS = Kind("actions", 4, CLONE_SIGHAND, "signal actions (CLONE_SIGHAND)")
FILES = Kind("files", 2, CLONE_FILES, "descriptor table (CLONE_FILES)", leaves=True)
FS = Kind("fs", 3, CLONE_FS, "current directory (CLONE_FS)", leaves=True)
IO = Kind("io", 5, CLONE_IO, "I/O context (CLONE_IO)", may_be_null=True)
UNDO = Kind("undo", 6, CLONE_SYSVSEM, "list of semaphores to undo (CLONE_SYSVSEM)", leaves=True, may_be_null=True)
KINDS = (MEMORY, ACTIONS, FILES, FS, IO, UNDO)


@dataclass(frozen=True)
class Shares:
    """With whom a process shares each kind: the number of the first of those that do, be it its own; 0: nobody."""

    memory: int = 0
    actions: int = 0
    files: int = 0
    fs: int = 0
    io: int = 0
    undo: int = 0

    def of(self, kind: Kind) -> int:
        """The number for this kind."""
        return int(getattr(self, kind.name))


ALONE = Shares()


def compare(one: int, other: int, kind: Kind) -> int:
    """0: they share it; else -1 or 1, an order that means nothing. OSError."""
    return _compare(one, [other], kind)[0]


def _compare(one: int, others: Sequence[int], kind: Kind) -> list[int]:
    calls = Calls()
    calls.add_table(len(others), (NUMBERS["kcmp"], one, others, kind.kcmp))
    results = calls.make()
    for other, result in zip(others, results, strict=True):
        if result < 0:
            raise OSError(-result, f"kcmp of processes {one} and {other}: {os.strerror(-result)}")
    return [(0, -1, 1)[result] for result in results]


def _sorted(pids: Sequence[int], kind: Kind) -> list[list[int]]:
    """Those that share it together, in the order of `compare`: by quicksort, a row of comparisons at a time."""
    found: list[list[int]] = []
    left: list[tuple[bool, list[int]]] = [(False, [*pids])]
    while left:
        done, some = left.pop()
        if done or len(some) == 1:
            found.append(some)
        elif some:
            pivot, *rest = some
            results = _compare(pivot, rest, kind)
            below, same, above = ([pid for pid, found in zip(rest, results, strict=True) if found == which]
                                  for which in (1, 0, -1))  # fmt: skip
            left += (False, above), (True, [pivot, *same]), (False, below)
    return found


def _insert(groups: list[list[int]], pid: int, kind: Kind) -> None:
    def order(one: list[int], other: list[int]) -> int:
        return compare(one[0], other[0], kind)

    ordered = cmp_to_key(order)
    at = bisect_left(groups, ordered([pid]), key=ordered)
    if at < len(groups) and compare(groups[at][0], pid, kind) == 0:
        groups[at].append(pid)
    else:
        groups.insert(at, [pid])


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 6


def _having_none(pids: Sequence[int], newborn: int, kind: Kind) -> set[int]:
    """Where that of the newborn does not tell, because it has one, who has an I/O context has chosen a priority."""
    if kind is IO and _priority_class(os.getpid()):
        return {pid for pid in pids if not _priority_class(pid)}
    return {pid for pid, result in zip(pids, _compare(newborn, pids, kind), strict=True) if result == 0}


def _priority_class(pid: int) -> int:
    priority = int(_libc.syscall(NUMBERS["ioprio_get"], _IOPRIO_WHO_PROCESS, pid, 0, 0, 0))
    if priority < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ioprio_get of process {pid}: {os.strerror(error)}")
    return priority >> _IOPRIO_CLASS_SHIFT


@contextmanager
def _newborn() -> Iterator[int]:
    """A process that shares nothing but our memory and has no I/O context and no semaphores to undo, unless we run
    under an I/O priority ourselves: then it has one of its own. It sleeps, and ends with the context or with us."""
    program = Program("a process with nothing of its own")
    with program.branch() as child:
        program.syscall("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, label="end with its maker")
        program.op(OpKind.PARK, -1, label="sleep")
    with mmap.mmap(-1, _STACK) as stack:
        room = ctypes.c_char.from_buffer(stack)
        try:
            args = program.data(struct.pack("<11Q", CLONE_VM, 0, 0, 0, 0, ctypes.addressof(room), _STACK, 0, 0, 0, 0))
            made = program.clone(args, child, label="clone3")
            results = local.run(program.link())
            if results.failed is not None:
                raise OSError(-results.failed[1], f"clone3: {os.strerror(-results.failed[1])}")
            pid = results.of(made)
            try:
                yield pid
            finally:
                os.kill(pid, SIGKILL)
                os.waitpid(pid, WALL)
        finally:
            del room


@dataclass
class Sharers:
    """Of one tree. Remembers what it found: see above."""

    _groups: dict[Kind, list[list[int]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    _nothing: dict[Kind, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    _last: tuple[list[int], list[int], list[Shares]] = field(default_factory=lambda: ([], [], []))

    def find(self, pids: Sequence[int], numbers: Sequence[int], fresh: Collection[int] = ()) -> list[Shares]:
        """``pids``: parents first, as we number them, and by which ``numbers`` they know themselves; ``fresh``: of
        which nothing that was found before holds. Also those that were not among the last ones are new.
        OSError where one of them has ended (ESRCH)."""
        if not fresh and self._last[:2] == ([*pids], [*numbers]) and not self._has_split():
            return self._last[2]
        self._last = [], [], []
        with ExitStack() as stack:
            newborn = cache(lambda: stack.enter_context(_newborn()))
            for kind in KINDS:
                self._sort(kind, pids, fresh, newborn)
        named = dict(zip(pids, numbers, strict=True))
        found: dict[int, dict[str, int]] = {pid: {} for pid in pids}
        order = {pid: position for position, pid in enumerate(pids)}
        for kind in KINDS:
            for group in self._groups[kind]:
                if len(group) > 1:
                    first = min(group, key=order.__getitem__)
                    for pid in group:
                        found[pid][kind.name] = named[first]
        self._last = [*pids], [*numbers], [Shares(**found[pid]) if found[pid] else ALONE for pid in pids]
        return self._last[2]

    def _has_split(self) -> bool:
        shared = ((kind, group) for kind in KINDS for group in self._groups[kind] if len(group) > 1)
        return any(any(_compare(group[0], group[1:], kind)) for kind, group in shared)

    def _sort(self, kind: Kind, pids: Sequence[int], fresh: Collection[int], newborn: Callable[[], int]) -> None:
        known = {pid for group in (*self._groups[kind], self._nothing[kind]) for pid in group} - {*fresh}
        new = {pid for pid in pids if pid not in known}
        left: list[int] = []
        stays = {*pids} - new
        nothing = [pid for pid in self._nothing[kind] if pid in stays]
        groups: list[list[int]] = []
        for group in self._groups[kind]:
            stay = [pid for pid in group if pid in stays]
            if len(stay) > 1 and any(_compare(stay[0], stay[1:], kind)):
                left += stay  # who it was that has left is found by looking at all of them
            elif len(stay) == 1 and new and kind.may_be_null:
                left += stay  # it may have got one since
            elif stay:
                groups.append(stay)
        if new:
            left, nothing = left + nothing, []
        coming = [*left, *sorted(new)]
        if kind.may_be_null and len(pids) > 1 and coming:
            none = _having_none(coming, newborn(), kind)
            nothing += none
            coming = [pid for pid in coming if pid not in none]
        if len(coming) > _FEW:
            groups = _sorted([*(pid for group in groups for pid in group), *coming], kind)
        else:
            for pid in coming:
                _insert(groups, pid, kind)
        self._groups[kind], self._nothing[kind] = groups, nothing

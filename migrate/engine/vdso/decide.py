"""What becomes of a task's vDSO on another kernel. Pure: two symbol tables in, a verdict out.

Symbols count, not bytes: the kernel patches its vDSO to the CPU when it boots (apply_alternatives()).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from migrate.engine.vdso import stubs
from migrate.engine.vdso.image import VDSO, Function
from migrate.errors import Problem


class Decision(enum.Enum):
    """What becomes of the vDSO. The values are those of ``--json``."""

    NONE = "none"  # the task has none, and gets none
    REMAP = "remap"  # the destination's own is moved to where the task expects it
    PROXY = "proxy"  # the task's stays, and leads to the destination's own, or to system calls


@dataclass(frozen=True)
class Entry:
    """What becomes of one entry point of the task's vDSO.

    ``names``: those it is exported by, the kernel's own first; ``there``: offset of the same function in the
    destination's, or None; ``stub``: the code that takes its place where there is none; ``room``: bytes that are the
    function's own, and may be written over; ``own``: what is written there instead of any jump.
    """

    names: tuple[str, ...]
    offset: int
    room: int
    there: int | None
    stub: bytes = b""
    own: bytes | None = None

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Verdict:
    """``entries``: lowest first."""

    decision: Decision
    task: VDSO
    there: VDSO
    entries: tuple[Entry, ...] = ()
    problems: tuple[Problem, ...] = ()

    def table(self) -> list[str]:
        """For people: function, offset on the source, offset on the destination, what is done."""
        if self.decision is Decision.NONE:
            return ["vDSO: none; the process has none, and gets none"]
        head = f"vDSO: {self.decision.value}; source {self.task.shown}; destination {self.there.shown}"
        width = max((len(_named(entry)) for entry in self.entries), default=0)
        rows = [("function".ljust(width), "source", "dest.", "what is done")]
        for entry in self.entries:
            there = "–" if entry.there is None else f"{entry.there:x}"
            rows.append((_named(entry).ljust(width), f"{entry.offset:x}", there, self._done(entry)))
        return [head, *(f"  {name}  {ours:>6}  {theirs:>6}  {done}" for name, ours, theirs, done in rows)]

    def _done(self, entry: Entry) -> str:
        if self.decision is Decision.REMAP:
            return "in its place"
        if entry.own is not None:
            return "system call by int $0x80" if entry.own else "stays as it is"
        return "jump" if entry.there is not None else stubs.described(entry.name, self.task.compat)


def decide(task: VDSO, there: VDSO, where: str, differ: bool = False) -> Verdict:
    """``task``: pristine, as its own kernel made it; ``there``: that of a fresh process of the destination. ``where``:
    whose it is, for problems; ``differ``: do as if the two were not the same (for tests)."""
    if task.area is None:
        return Verdict(Decision.NONE, task, there, problems=tuple(_stray(task, there, where)))
    same = there.area is not None and task.shape == there.shape and task.functions == there.functions
    if same and not differ:
        entries = tuple(_entry(aliases, 0, offset) for offset, aliases in task.entries().items())
        return Verdict(Decision.REMAP, task, there, entries=entries)
    theirs = {(function.name, function.version): function.offset for function in there.functions}
    found, problems = [], []
    entries_here = task.entries()
    offsets = [*entries_here, len(task.image)]
    for (offset, aliases), behind in zip(entries_here.items(), offsets[1:], strict=True):
        if task.compat and aliases[0] in task.kernel_entries:
            code = task.image[offset : offset + aliases[0].size]
            own = stubs.kernel_entry_32(aliases[0].name, code)
            found.append(replace(_entry(aliases, 0, None), own=own))
            if own is None:
                what = f"its vDSO has {aliases[0].name}, of which nothing is known"
                problems.append(Problem(where, what, "move it to a host with the same kernel"))
            continue
        room = min(behind - offset, *(function.size or behind - offset for function in aliases))
        target = next((theirs[a.name, a.version] for a in aliases if (a.name, a.version) in theirs), None)
        stub = stubs.stub(aliases[0].name, task.compat) if target is None else None
        entry = _entry(aliases, room, target, stub or b"")
        if target is None and stub is None:
            what = f"the destination's vDSO has no {entry.name}, and no system call is known to take its place"
            problems.append(Problem(where, what, "move it to a host with the same kernel"))
        elif room < stubs.NEAR:
            what = f"{entry.name} in its vDSO has {room} bytes, too few for a jump to the destination's"
            problems.append(Problem(where, what, "move it to a host with the same kernel"))
        found.append(entry)
    return Verdict(Decision.PROXY, task, there, entries=tuple(found), problems=tuple(problems))


def _entry(aliases: Sequence[Function], room: int, there: int | None, stub: bytes = b"") -> Entry:
    return Entry(tuple(function.name for function in aliases), aliases[0].offset, room, there, stub)


def _stray(task: VDSO, there: VDSO, where: str) -> list[Problem]:
    """A task that unmapped its code and kept the data: it must get the same."""
    sizes = {area.name: area.size for area in there.areas}
    return [
        Problem(where, f"it has {area.name} ({area.size:#x} bytes) without a vDSO, and the destination has no such")
        for area in task.data
        if sizes.get(area.name) != area.size
    ]


def _named(entry: Entry) -> str:
    aliases = ", ".join(entry.names[1:])
    return f"{entry.name} ({aliases})" if aliases else entry.name

"""The vDSO of a task as it was before any move: found among its mappings, checked, and put in place again.

On its own kernel that is what the kernel mapped. On any other the task has a proxy (`migrate.engine.vdso.proxy`), which
is to be seen as what it stands for: the mappings of the task are given the names that they had, and what is ours among
them is set apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from migrate.engine import vdso
from migrate.engine.kinds.mapping import droppable
from migrate.engine.kinds.vma import PROT_EXEC, PROT_READ, RT, VMA
from migrate.engine.program import Program
from migrate.engine.vdso import NAMES, VDSO, VDSO_NAME, Area, Mark, NoVDSO, StrangeMark
from migrate.engine.vdso.mark import HEAD_SIZE, MAX_SIZE, size_of
from migrate.errors import Failed, Problem

_RX = PROT_READ | PROT_EXEC
# Bytes that are kept free for them: more than most stacks may have (getrlimit(2)), and enough for malloc(3).
_STACK_GROWTH, _HEAP_GROWTH = 256 << 20, 1 << 30
_RESTART = "start it anew; its vDSO was meddled with"

Range = tuple[int, int]
Read = Callable[[int, int], bytes]  # address, size; OSError where it is not mapped


@dataclass(frozen=True)
class OwnVDSO:
    """``vdso``: pristine, where the task has it. ``mark``: when it has a proxy. ``problems``: why it cannot move."""

    vdso: VDSO
    mark: Mark | None = None
    problems: tuple[Problem, ...] = ()

    def code(self, native: VDSO) -> list[tuple[Area, VDSO]]:
        """Where a thread is in a vDSO, and of which image the code is: the task's, and what its proxy leads to; our
        stubs are of none. ``native``: that of this kernel."""
        found = [(self.vdso.area, self.vdso)]
        if self.mark:
            mark = Area("", self.mark.address, self.mark.address + self.mark.size)
            found += [(VDSO(self.mark.rt).area, native), (mark, VDSO(()))]
        return [(area, image) for area, image in found if area is not None]

    @property
    def entries(self) -> frozenset[int]:
        """The first instruction of each function that the task may call: it is one too after a move."""
        area = self.vdso.area
        return frozenset(area.start + function.offset for function in self.vdso.functions) if area else frozenset()

    def named(self, vmas: list[VMA]) -> list[VMA]:
        """The VMAs under the names that those of the vDSO had. What is ours is special then too: it is not the task's,
        and does not travel."""
        return named(vmas, self.mark) if self.mark else vmas


def find_mark(vmas: Sequence[VMA], read: Read) -> Mark | None:
    """The mark of a task that has a proxy. Raises StrangeMark, NoVDSO: there is one, and it makes no sense."""
    places = [vma.end for vma in vmas if vma.name == VDSO_NAME]
    places += [vma.start for vma in vmas if vma.anonymous and not vma.shared and vma.prot == _RX]
    for place in places:
        try:
            size = size_of(read(place, HEAD_SIZE))
            if not size:
                continue
            mark = Mark.decode(read(place, size))
        except OSError:
            continue  # nothing, or less than a mark, is mapped there
        # Of a copy that the task has made there may be any number.
        if mark.address == place and mark.size <= MAX_SIZE:
            return mark
    return None


def look(vmas: Sequence[VMA], read: Read, native: VDSO, where: str) -> OwnVDSO:
    """``vmas``: as maps shows them; ``native``: the vDSO of any other process on this kernel."""
    try:
        mark = find_mark(vmas, read)
        if mark is not None:
            return _proxied(vmas, read, mark, where)
        return _plain(vmas, read, native, where)
    except (StrangeMark, NoVDSO) as error:
        return OwnVDSO(VDSO(()), problems=(Problem(where, str(error), _RESTART),))


def _plain(vmas: Sequence[VMA], read: Read, native: VDSO, where: str) -> OwnVDSO:
    special = [vma for vma in vmas if vma.name in NAMES]
    areas = tuple(Area(vma.name, vma.start, vma.end) for vma in special)
    found = VDSO(areas)
    if found.area is None:
        return OwnVDSO(found)

    def refused(what: str) -> OwnVDSO:
        return OwnVDSO(found, problems=(Problem(where, what, _RESTART),))

    if len({area.name for area in areas}) < len(areas) or any(
        vma.prot != (_RX if vma.name == VDSO_NAME else PROT_READ) for vma in special
    ):
        return refused("its vDSO is mapped in parts, or its protection was changed")
    if native.area is None:
        return refused("it has a vDSO, and this kernel gives none to a new process (vdso=0)")
    if found.shape != native.shape:
        return refused(f"its vDSO is unmapped in part, or moved apart: {found.shown}; here it is {native.shown}")
    found = VDSO.read(areas, read(found.area.start, found.area.size))
    if found.image != native.image:
        return refused("its vDSO is not that of this kernel: it has been written to")
    return OwnVDSO(found)


def _proxied(vmas: Sequence[VMA], read: Read, mark: Mark, where: str) -> OwnVDSO:
    def refused(what: str) -> OwnVDSO:
        return OwnVDSO(mark.task, mark, (Problem(where, what, _RESTART),))

    special = tuple(Area(vma.name, vma.start, vma.end) for vma in vmas if vma.name in NAMES)
    if special != mark.rt:
        return refused("the vDSO that its proxy leads to was unmapped or moved")
    names = {vma.name for vma in named(list(vmas), mark)}
    present = [area.name in names for area in mark.task.areas]
    if not any(present):
        moved = any(_resembles(vma, mark, read) for vma in vmas)
        if moved:
            return refused("the proxy of its vDSO was moved")
        return OwnVDSO(VDSO(()), mark)
    if not all(present):
        return refused("the proxy of its vDSO is unmapped in part")
    area = mark.task.area
    assert area is not None
    if not mark.matches(read(area.start, area.size)):
        return refused("the proxy of its vDSO has been written to")
    return OwnVDSO(mark.task, mark)


def _resembles(vma: VMA, mark: Mark, read: Read) -> bool:
    area = mark.task.area
    if area is None or vma.prot != _RX or not vma.anonymous or vma.size < area.size:
        return False
    return any(mark.matches(read(at, area.size)) for at in range(vma.start, vma.end - area.size + 1, 4096))


def named(vmas: list[VMA], mark: Mark) -> list[VMA]:
    """See `OwnVDSO.named`."""
    protections = {VDSO_NAME: _RX}
    parts = [(area.start, area.end, area.name, protections.get(area.name, PROT_READ)) for area in mark.task.areas]
    parts.append((mark.address, mark.address + mark.size, RT, _RX))
    rt = set(mark.rt)
    plain = set(mark.droppable)
    found: list[VMA] = []
    for vma in vmas:
        if (vma.start, vma.end) in plain and {"dd", "wf"} <= set(vma.flags.split()):
            found.append(replace(vma, flags=" ".join(sorted({*vma.flags.split(), "dp"}))))
        elif vma.name in NAMES:
            ours = Area(vma.name, vma.start, vma.end) in rt
            found.append(replace(vma, name=RT) if ours else vma)
        elif vma.anonymous and not vma.shared and any(a < vma.end and vma.start < b for a, b, _, _ in parts):
            found += _cut(vma, parts)
        else:
            found.append(vma)
    return found


def _cut(vma: VMA, parts: Sequence[tuple[int, int, str, int]]) -> list[VMA]:
    """A VMA may be more than a part (where areas cannot be named they merge with their neighbours), or several."""
    found, at = [], vma.start
    for start, end, name, prot in sorted(parts):
        if vma.start <= start and end <= vma.end and vma.prot == prot:
            if at < start:
                found.append(replace(vma, start=at, end=start))
            found.append(VMA(start, end, prot, False, None, 0, name, ""))
            at = end
    if at < vma.end:
        found.append(replace(vma, start=at))
    return found


class RestoredVDSO:
    """The destination's own vDSO in the restoree: waiting, or where the task is to find it, by remap or proxy.

    It is in place long before the freeze. Whenever the task's layout changes it is taken away first and put back after,
    so that it is in the way of nothing.
    """

    def __init__(
        self, parked: tuple[Area, ...], verdict: vdso.Verdict | None, taken: Sequence[Range], can_drop: bool = True
    ) -> None:
        """``parked``: where it waits, as `vdso.park_ops` says; ``verdict``: None means that it is the same; ``taken``:
        addresses that a proxy must keep off besides the task's; ``can_drop``: this kernel has MAP_DROPPABLE."""
        self._parked = parked
        self._compat = verdict is not None and verdict.task.compat
        self._exchanged = False
        self._verdict, self._taken, self._can_drop = verdict, taken, can_drop
        self._at = parked
        self._made: tuple[Area, ...] = ()  # ours, besides
        self._wanted: tuple[Area, ...] | None = None

    def place(self, program: Program, vmas: Sequence[VMA]) -> None:
        """Where the task expects it. Raises Failed: it has moved its vDSO since the verdict."""
        wanted = self._wanted = _wanted(vmas)
        verdict = self._verdict
        if self._compat and wanted and verdict is not None and verdict.there.area is not None:
            self._at, self._exchanged = self._exchange(program, verdict.there), True
        if verdict is None or verdict.decision is not vdso.Decision.PROXY or not wanted:
            try:
                vdso.place_ops(program, self._at, wanted)
            except ValueError as error:
                raise Failed(f"the vDSO of the process cannot be put in place: {error}; try again") from None
            self._at = wanted
            return
        area = verdict.task.area
        if wanted != verdict.task.areas or area is None:
            raise Failed("the process has moved its vDSO meanwhile; try again")
        used = [*((vma.start, vma.end) for vma in vmas if vma.name != RT), *self._taken]
        stacks = [vma for vma in vmas if "gd" in vma.flags and "gd" in vma.flags.split()]
        grows = [(vma.start - _STACK_GROWTH, vma.start) for vma in stacks]
        grows += [(vma.end, vma.end + _HEAP_GROWTH) for vma in vmas if vma.name == "[heap]"]
        plain = () if self._can_drop else tuple((vma.start, vma.end) for vma in vmas if droppable(vma))
        base = vdso.choose_base(used, grows, area, vdso.room_needed(verdict, plain), self._compat)
        build = vdso.build(verdict, base, plain)
        vdso.proxy_ops(program, self._at, build)
        self._at, self._made = build.rt, build.mapped

    def withdraw(self, program: Program) -> None:
        """Back to where it waits."""
        for area in self._made:
            program.syscall("munmap", area.start, area.size, label="the proxy of the vDSO, for now")
        if self._exchanged:
            vdso.exchange_ops(program, self._at, self._parked, compat=False)
            self._at = self._parked
        elif self._wanted is not None:
            waiting = {area.name: area.start for area in self._parked}
            for area in self._at:
                vdso.move_op(program, area, waiting[area.name], f"put {area.name} aside again")
            self._at = tuple(Area(each.name, waiting[each.name], waiting[each.name] + each.size) for each in self._at)
        self._made, self._wanted, self._exchanged = (), None, False

    def _exchange(self, program: Program, there: VDSO) -> tuple[Area, ...]:
        """That of processes of 32 bits in its place; where it is then. ``there``: one of the destination's."""
        at, low = min(area.start for area in self._parked), min(area.start for area in there.areas)
        found = tuple(Area(area.name, at + area.start - low, at + area.end - low) for area in there.areas)
        vdso.exchange_ops(program, self._at, found, compat=True)
        return found


def _wanted(vmas: Sequence[VMA]) -> tuple[Area, ...]:
    """The vDSO that the task has."""
    return tuple(Area(vma.name, vma.start, vma.end) for vma in vmas if vma.special and vma.name in NAMES)

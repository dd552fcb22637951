"""Compiles the address space of a task into programs for the restoree, in phases.

    clear       nothing but the restorer is left, and the vDSO is put aside      once, first
    map         every VMA at its final address, writable, to be filled           once, while the source runs
    difference  what changed since                                               between rounds, and in the freeze
    finish      final protections, locks, seals                                  once, after the last page

Between map and finish the contents arrive: the restorer reads them from its data descriptor straight to where they
belong. It cannot write to what is not writable, so the final protection comes last; see `VMA.fill_prot` for what gets
it at once.

rlimits, personality and credentials of the task must be restored after the finish: they would be in its way
(RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, READ_IMPLIES_EXEC, CAP_IPC_LOCK).
"""

from __future__ import annotations

import bisect
import errno
from collections.abc import Iterable, Mapping, Sequence

from migrate.engine import vdso
from migrate.engine.kinds import sysv_memory
from migrate.engine.kinds.mapping import MADV_GUARD_INSTALL, Bridges, Mapper, bridgeable, rules, stage_size
from migrate.engine.kinds.vma import FILE, PROT_WRITE, RW, SHMEM, VMA, displaced, memfds
from migrate.engine.memory.layout import TASK_SIZE, Range, free_range, park
from migrate.engine.overseer import Hole
from migrate.engine.program import OpKind, Program
from migrate.errors import Problem

MLOCK_ONFAULT = 1  # mlock2(2)
F_ADD_SEALS, F_SEAL_SEAL = 1033, 1
MS_SYNC = 4

CHEAP = 256 << 10  # bytes that may be sent again so that an area is one

Numbers = Mapping[tuple[int, int], int]  # Backing.key of each memfd -> its descriptor number in the restoree
Lenders = Mapping[tuple[int, int], tuple[int, int]]  # of those that another restoree has: its PID, the number there
NO_MEMFDS: Numbers = {}
NO_LENDERS: Lenders = {}


def compile_clear(program: Program, areas: tuple[vdso.Area, ...], hole: Hole) -> tuple[vdso.Area, ...]:
    """Unmap all that the restoree has from the overseer. ``areas``: the vDSO in the overseer's maps (`vdso.areas`).
    Returns where its parts wait."""
    low, high = park(hole)
    parked = vdso.park_ops(program, areas, low, high)
    compile_inherit(program, (), parked, hole)
    return parked


def compile_inherit(program: Program, kept: Sequence[Range], parked: tuple[vdso.Area, ...], hole: Hole) -> None:
    """Unmap what the restoree has from who made it, but for these ranges. ``parked``: where its vDSO waits."""
    own = hole.start, parked[-1].end if parked else hole.end
    for start, end in _minus((0, TASK_SIZE), [*kept, own]):
        program.syscall("munmap", start, end - start, label=f"{start:x}-{end:x}, which is its maker's")


def compile_kept(vmas: Sequence[VMA], kept: Sequence[Range]) -> list[VMA]:
    """What is left of an address space when only these ranges of it, each in one VMA, are kept."""
    starts = [vma.start for vma in vmas]
    return [_part(vmas[bisect.bisect_right(starts, start) - 1], start, end) for start, end in kept]


def compile_map(
    program: Program,
    vmas: Sequence[VMA],
    hole: Hole,
    numbers: Numbers = NO_MEMFDS,
    lenders: Lenders = NO_LENDERS,
) -> None:
    """Map everything. ``numbers``: one for each of `memfds(vmas)`, free in the restoree; they stay open, for the
    descriptors of the task are made from them."""
    apart = displaced(vmas)
    bridges = Bridges()
    bridges.plan(((vma, True) for vma in vmas), apart, restorers(hole))
    mapper = Mapper(program, _stage(vmas, (), hole, apart), numbers, bridges, lenders)
    for backing in memfds(vmas):
        mapper.create_memfd(backing)
    mapper.make((vma for vma in vmas if not vma.special), apart)


def compile_fillable(program: Program, vmas: Iterable[VMA]) -> None:
    """Make areas writable that were not expected to have contents of their own (a debugger has written to them).

    Their starts must be among ``opened`` of `compile_finish`. They stay charged ("ac"): no other way is known to fill
    them."""
    for vma in vmas:
        if vma.fill_prot != RW:
            program.syscall("mprotect", vma.start, vma.size, RW, label=f"{vma.label}, to be filled")


def compile_difference(
    program: Program,
    old: Sequence[VMA],
    new: Sequence[VMA],
    hole: Hole,
    numbers: Numbers = NO_MEMFDS,
    lenders: Lenders = NO_LENDERS,
) -> list[Range]:
    """From one reading to the next. Returns the ranges that are freshly mapped on the destination: whatever was sent
    for them before is gone. What merely grew, shrank, was split or changed its protection keeps its contents.

    An area that was unmapped and mapped again in the same place looks the same here; the dirty tracker sees that it
    is no longer tracked."""
    if old == new:
        return []
    plan = _Plan(old, new)
    created = {backing.key: backing.size for backing in memfds(old)}
    bridges = Bridges()
    bridges.plan(plan.pieces(), plan.apart, restorers(hole))
    mapper = Mapper(program, _stage(new, old, hole, plan.apart), numbers, bridges, lenders)
    for start in plan.touched:
        program.op(OpKind.COPY, start, start, 1, label=f"touch {start:x}")
    for start, end in plan.unmapped():
        program.syscall("munmap", start, end - start, label=f"{start:x}-{end:x}, which is gone")
    for backing in memfds(new):
        if backing.key not in created:
            mapper.create_memfd(backing)
        elif backing.size != created[backing.key]:
            mapper.resize_memfd(backing)
    for was, vma in plan.grown:
        label = f"{vma.label} has grown"
        args = (vma.start, was.end - vma.start, vma.size, 0)
        program.syscall("mremap", *args, label=label, expect=vma.start)
    # Before anything is mapped beside it: as long as it was not written to, it merges with whatever is.
    for start, end in plan.opened:
        program.syscall("mprotect", start, end - start, RW, label=f"{start:x}-{end:x}, writable now")
        if start in plan.charged:
            program.op(OpKind.COPY, start, start, 1, label=f"touch {start:x}")
    mapper.make(plan.made, plan.apart)
    return sorted((vma.start, vma.end) for vma in plan.made)


def compile_finish(
    program: Program,
    vmas: Sequence[VMA],
    guards: Iterable[Range] = (),
    numbers: Numbers = NO_MEMFDS,
    opened: frozenset[int] = frozenset(),
    lenders: Lenders = NO_LENDERS,
    hole: Hole | None = None,
) -> None:
    """After the contents: what would have been in their way. ``guards``: ranges of guard pages. ``opened``: starts of
    what went through `compile_fillable`. mm_struct (`mm.MM`) and seals (`compile_seal`) come after this."""
    if hole is not None:
        sysv_memory.attach_again(program, vmas, restorers(hole), Mapper(program, 0, numbers).dress)
    for start, end in guards:
        program.syscall("madvise", start, end - start, MADV_GUARD_INSTALL, label=f"guard pages {start:x}-{end:x}")
    _protect(program, vmas, opened)
    for vma in vmas:
        if "lo" in vma.flags and "lo" in vma.flags.split():
            _lock(program, vma)
    for backing in memfds(vmas):
        if backing.seals and backing.key not in lenders:
            number = numbers[backing.key]
            seals = backing.seals
            program.syscall("fcntl", number, F_ADD_SEALS, seals, label=f"seals of memfd {backing.path}")


def compile_seal(program: Program, vmas: Iterable[VMA]) -> None:
    """mseal(2), Linux 6.10: the last thing of all, for then nothing about them can be changed."""
    for vma in vmas:
        if "sl" in vma.flags and "sl" in vma.flags.split():
            program.syscall("mseal", vma.start, vma.size, 0, label=f"seal {vma.label}")


def compile_flush(program: Program, vmas: Iterable[VMA]) -> None:
    """In the task itself, when it is stopped: have what it wrote to shared file mappings in the files, where another
    host that shares them will look."""
    for vma in vmas:
        if vma.shared and vma.backing is not None and vma.backing.kind == FILE and "mw" in vma.flags.split():
            program.syscall("msync", vma.start, vma.size, MS_SYNC, label=f"write {vma.label} to its file")


def problems(vmas: Sequence[VMA], where: str, max_map_count: int, threads: int = 1) -> list[Problem]:
    """What the destination lacks room for. ``max_map_count``: its vm.max_map_count."""
    need = len(vmas) + 16 + threads  # the restorer's own, and one that is split while it is put in place
    if need <= max_map_count:
        return []
    what = f"{len(vmas)} mappings, and vm.max_map_count is {max_map_count} on the destination"
    return [Problem(where, what, f"sysctl vm.max_map_count={need * 2} there")]


def _stage(new: Sequence[VMA], old: Sequence[VMA], hole: Hole, apart: set[int]) -> int:
    size = stage_size(new, apart)
    if not size:
        return 0
    used = [(vma.start, vma.end) for vmas in (new, old) for vma in vmas]
    return free_range([*used, restorers(hole)], size)


def restorers(hole: Hole) -> Range:
    """What is the restorer's."""
    return hole.start, park(hole)[1]


def _protect(program: Program, vmas: Sequence[VMA], opened: frozenset[int]) -> None:
    """One call for neighbours that get the same: it changes each of them, and merges none that are apart."""
    start = end = prot = key = -1
    first: VMA | None = None

    def flush() -> None:
        if first is None:
            return
        label = f"protection of {first.label}" + (f" to {end:x}" if end != first.end else "")
        if key:
            program.syscall("pkey_mprotect", start, end - start, prot, key, label=label)
        else:
            program.syscall("mprotect", start, end - start, prot, label=label)

    for vma in vmas:
        # A key on an area that may only be executed is the kernel's own doing (execute_only_pkey()).
        wanted = 0 if vma.prot == 4 else vma.pkey
        if vma.special or (vma.fill_prot == vma.prot and not wanted and vma.start not in opened):
            continue
        if first is not None and vma.start == end and (vma.prot, wanted) == (prot, key):
            end = vma.end
            continue
        flush()
        first, start, end, prot, key = vma, vma.start, vma.end, vma.prot, wanted
    flush()


def _lock(program: Program, vma: VMA) -> None:
    """mlock(2) brings in every page, and says ENOMEM where one cannot be (no protection to read it by, a guard, behind
    the end of the file); the area is locked all the same."""
    name, flag = ("mlock2", (MLOCK_ONFAULT,)) if "lf" in vma.flags.split() else ("mlock", ())
    program.syscall(name, vma.start, vma.size, *flag, label=f"lock {vma.label}", errno_ok=errno.ENOMEM)


class _Plan:
    """What becomes of each old VMA and each new one.

    ``made``: (parts of) new VMAs that are mapped anew; ``grown``: (old, new) with the same start; ``opened``: kept
    ranges that must become writable to be filled.

    One thing cannot be known from outside: which areas share an anon_vma, so which will merge when what is between
    them becomes like them. The guesses here are right for what programs do. When one is wrong, an area shows as two
    lines in maps, or two as one; contents are never at stake.
    """

    def __init__(self, old: Sequence[VMA], new: Sequence[VMA]) -> None:
        self.old = [vma for vma in old if not vma.special]
        self.touched: list[int] = []  # kept pages
        self._starts = [vma.start for vma in self.old]
        self._apart_before = displaced(old)
        self.apart = self._displaced(new)
        self.made: list[VMA] = []
        self.grown: list[tuple[VMA, VMA]] = []
        self.opened: list[Range] = []
        self.charged: set[int] = set()  # starts of those among them that must be written to
        self._kept: list[Range] = []
        self._stay: list[VMA] = []  # what of the new ones is kept
        before = {vma.start: vma for vma in self.old}
        self._remade = self._objects_remade(new)
        for vma in new:
            if vma.special:
                continue
            was = before.get(vma.start)
            unchanged = (was is vma or was == vma) and not self._moved(vma)
            if unchanged and (vma.backing is None or vma.backing.key not in self._remade):
                self._kept.append((vma.start, vma.end))
                self._stay.append(vma)
            else:
                self._fit(vma)
        self._kept.sort()

    def pieces(self) -> list[tuple[VMA, bool]]:
        """All that there will be, lowest first, and whether it is made now."""
        found = [(vma, True) for vma in self.made] + [(vma, False) for vma in self._stay]
        return sorted(found, key=lambda piece: piece[0].start)

    def _displaced(self, new: Sequence[VMA]) -> set[int]:
        """Those of the new ones that must be kept apart by force: not those that are kept apart here by what kept them
        apart there, that they were written to when something else was between them."""
        found = displaced(new)
        for start in found - self._apart_before:
            at = bisect.bisect_right(self._starts, start) - 1
            if at < 1:
                continue
            below, was = self.old[at - 1 : at + 1]
            if not was.start <= start < was.end or was.backing is not None or was.start in self._apart_before:
                continue
            if was.start < start:  # it was one with what is below
                continue
            one = below.end == was.start and below.fill_prot == was.fill_prot and rules(below) == rules(was)
            if not one and not bridgeable(below, was, self._apart_before):
                found.discard(start)
                if below.anonymous and below.fill_prot == was.fill_prot == RW:
                    self.touched += [below.end - 4096, was.start]
        return found

    def _moved(self, vma: VMA) -> bool:
        return (vma.start in self.apart) != (vma.start in self._apart_before)

    def _objects_remade(self, new: Sequence[VMA]) -> set[tuple[int, int]]:
        """Shared anonymous objects of which there is a view that no old one covers: there is no name to open such an
        object by, so it is made anew with all its views."""
        found = set()
        for vma in new:
            backing = vma.backing
            if backing is not None and backing.kind == SHMEM:
                over = self._overlapping(vma)
                if not any(was.start <= vma.start and vma.end <= was.end and self._same(was, vma) for was in over):
                    found.add(backing.key)
        return found

    def _overlapping(self, vma: VMA) -> list[VMA]:
        at = max(bisect.bisect_right(self._starts, vma.start) - 1, 0)
        found = []
        while at < len(self.old) and self.old[at].start < vma.end:
            if self.old[at].end > vma.start:
                found.append(self.old[at])
            at += 1
        return found

    def _same(self, was: VMA, vma: VMA) -> bool:
        """Whether the memory of one can serve the other: the same thing behind it, mapped by the same rules."""
        if vma.start in self.apart or was.start in self._apart_before:
            return (was.start, was.end) == (vma.start, vma.end) and not self._moved(vma) and rules(was) == rules(vma)
        return rules(was) == rules(vma)

    def _fit(self, vma: VMA) -> None:
        over = [was for was in self._overlapping(vma) if self._usable(was, vma)]
        if vma.backing is not None and vma.backing.key in self._remade:
            over = []
        covered = [(max(was.start, vma.start), min(was.end, vma.end)) for was in over]
        if not over:
            self.made.append(vma)
            return
        missing = _minus((vma.start, vma.end), covered)
        if vma.backing is None:
            over = self._one_run(over, vma)
            covered = [(max(was.start, vma.start), min(was.end, vma.end)) for was in over]
            missing = _minus((vma.start, vma.end), covered)
            # New parts merge with the kept: same flags, and page offsets that follow from the addresses.
            self.made += [_part(vma, start, end) for start, end in missing]
        elif len(over) == 1 and len(missing) == 1 and missing[0][1] == vma.end and over[0].end == missing[0][0]:
            self.grown.append((over[0], vma))
        elif missing:
            self.made.append(vma)
            return
        self._kept += covered
        self._stay += [_part(vma, start, end) for start, end in covered]
        for was, (start, end) in zip(over, covered, strict=True):
            if was.fill_prot != vma.fill_prot:
                self.opened.append((start, end))
            if not vma.prot & PROT_WRITE and vma.anonymous and "ac" in vma.flags:
                # What was not written to would lose its "ac", see Mapper.
                if was.fill_prot != vma.fill_prot:
                    self.charged.add(start)
                elif was.prot & PROT_WRITE:
                    self.touched.append(start)

    @staticmethod
    def _one_run(over: list[VMA], vma: VMA) -> list[VMA]:
        """What to keep of the old ones that became one. Those that were written to apart cannot become one here, so the
        smaller are made anew if that is cheap; if not, `Bridges` has hopefully seen to it that they can. What could
        not be written to is no hindrance."""
        runs: list[list[VMA]] = []
        for was in over:
            if was.fill_prot != RW:
                continue
            if runs and runs[-1][-1].end == was.start:
                runs[-1].append(was)
            else:
                runs.append([was])
        sizes = [min(run[-1].end, vma.end) - max(run[0].start, vma.start) for run in runs]
        if len(runs) < 2 or sum(sizes) - max(sizes) > CHEAP:
            return over
        largest = runs[sizes.index(max(sizes))]
        return [was for was in over if was.fill_prot != RW or was in largest]

    def _usable(self, was: VMA, vma: VMA) -> bool:
        """An area that could not be filled may become one that can; not the other way, for it was charged."""
        return self._same(was, vma) and (was.fill_prot == vma.fill_prot or vma.fill_prot == RW)

    def unmapped(self) -> list[Range]:
        found: list[Range] = []
        for was in self.old:
            at = max(bisect.bisect_left(self._kept, (was.start, 0)) - 1, 0)
            over = []
            while at < len(self._kept) and self._kept[at][0] < was.end:
                if self._kept[at][1] > was.start:
                    over.append(self._kept[at])
                at += 1
            for start, end in _minus((was.start, was.end), over):
                if found and found[-1][1] == start:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
        return found


def _part(vma: VMA, start: int, end: int) -> VMA:
    offset = vma.offset + start - vma.start if vma.backing else 0
    return VMA(start, end, vma.prot, vma.shared, vma.backing, offset, vma.name, vma.flags, vma.pkey, vma.policy)


def _minus(whole: Range, parts: Iterable[Range]) -> list[Range]:
    found, at = [], whole[0]
    for start, end in sorted(parts):
        if start > at:
            found.append((at, start))
        at = max(at, end)
    if at < whole[1]:
        found.append((at, whole[1]))
    return found


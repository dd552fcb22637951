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
from migrate.engine.kinds.address_plan import Plan, minus, part
from migrate.engine.kinds.mapping import MADV_GUARD_INSTALL, Bridges, Mapper, stage_size
from migrate.engine.kinds.vma import FILE, RW, VMA, displaced, memfds
from migrate.engine.memory.layout import TASK_SIZE, Range, free_range, park
from migrate.engine.overseer import Hole
from migrate.engine.program import OpKind, Program
from migrate.errors import Problem

MLOCK_ONFAULT = 1  # mlock2(2)
F_ADD_SEALS, F_SEAL_SEAL = 1033, 1
MS_SYNC = 4

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
    for start, end in minus((0, TASK_SIZE), [*kept, own]):
        program.syscall("munmap", start, end - start, label=f"{start:x}-{end:x}, which is its maker's")


def compile_kept(vmas: Sequence[VMA], kept: Sequence[Range]) -> list[VMA]:
    """What is left of an address space when only these ranges of it, each in one VMA, are kept."""
    starts = [vma.start for vma in vmas]
    return [part(vmas[bisect.bisect_right(starts, start) - 1], start, end) for start, end in kept]


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
    plan = Plan(old, new)
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

"""Where in the address space the restorer lives while it becomes the task."""

from __future__ import annotations

from collections.abc import Iterable

from migrate.engine.kernel.maps import Mapping
from migrate.engine.overseer import Hole
from migrate.errors import Failed

PAGE = 4096
TASK_SIZE = (1 << 47) - PAGE  # what mmap(2) gives without asking for more (Documentation/arch/x86/x86_64/5level-paging)
LIMIT_32 = (1 << 32) - PAGE
LOWEST = 1 << 20  # above any vm.mmap_min_addr that is in use (65536 by default)

_ALIGN = 2 << 20
_GAP = 64 << 10  # between the hole and what is parked beside it
PARK_ROOM = 256 << 10  # vvar, vvar_vclock and vdso together have 32 KiB
_MARGIN = 16 << 20  # on both sides, so that nothing merges with the restorer's memory

_SPARE = 2  # processes that share the memory of another one

Range = tuple[int, int]  # first address, first address behind


class NoRoom(Failed):
    """The address space of the task has no hole for the restorer."""


def ranges(mappings: Iterable[Mapping]) -> list[Range]:
    """Those of maps, without what lies in the kernel's half."""
    return [(m.start, m.end) for m in mappings if m.start < TASK_SIZE]


def gaps(used: Iterable[Range], low: int = LOWEST, high: int = TASK_SIZE) -> list[Range]:
    """What none of the ranges covers, lowest first."""
    found, at = [], low
    for start, end in sorted(used):
        if start > at:
            found.append((at, min(start, high)))
        at = max(at, end)
    if at < high:
        found.append((at, high))
    return [(start, end) for start, end in found if end > start]


def choose_hole(used: Iterable[Range], size: int, high: int = TASK_SIZE) -> Hole:
    """A hole of ``size`` bytes in the middle of the largest gap.

    ``used``: the VMAs of all tasks that move together, and of the overseer. The middle, because what a task maps next
    lies at the edge of a gap: the heap grows up into it, the mmap area down. In an address space with only the usual
    parts it is tens of terabytes from anything. Raises NoRoom.
    """
    whole = size + _GAP + PARK_ROOM
    start, end = max(gaps(used, high=high), key=lambda gap: gap[1] - gap[0], default=(0, 0))
    if end - start < whole + 2 * _MARGIN:
        raise NoRoom(f"no free range of {whole >> 20} MiB in the address space")
    return Hole((start + (end - start - whole) // 2) & -_ALIGN, size)


def choose_region(used: Iterable[Range], room: int, tenants: int, compat: bool = False) -> tuple[Hole, Hole]:
    """A hole of ``room`` bytes for each restorer, and the region that it is the first of: of as many more as there are
    processes that share the memory of another one, and some for those that are yet to come. ``compat``: where pointers
    of 32 bits reach."""
    size = room * (1 + tenants + (_SPARE if tenants else 0))
    region = choose_hole(used, size, LIMIT_32 if compat else TASK_SIZE)
    return Hole(region.start, room), region


def park(hole: Hole) -> Range:
    """Room beside the hole, where the vDSO waits until its place is known."""
    start = hole.end + _GAP
    return start, start + PARK_ROOM


def collides(hole: Hole, used: Iterable[Range]) -> bool:
    """Whether the task has come to use the range of the restorer since it was chosen."""
    low, high = hole.start, park(hole)[1]
    return any(start < high and low < end for start, end in used)


def free_range(used: Iterable[Range], size: int) -> int:
    """The lowest address with ``size`` free bytes and a free page on each side. Raises NoRoom."""
    for start, end in gaps(used):
        if end - start >= size + 2 * PAGE:
            return start + PAGE
    raise NoRoom(f"no free range of {size} bytes in the address space")

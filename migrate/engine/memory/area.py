"""Which memory of a task travels, and how it is looked at.

What a page is that has to travel, by the kind of its VMA:

- Private anonymous memory: every page that is there, in memory or in swap, and is not the zero page.
- A private mapping of a file: the pages that the task has written (pagemap says FILE of the others).
- Shared memory (anonymous, memfd, System V): the pages of the *object*. A page may well be in it and in none of the
  task's page tables: written through a descriptor or another mapping, or MADV_DONTNEED'ed since.
- A shared mapping of a file, the vDSO and vvar, MAP_DROPPABLE memory: nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from migrate.engine.kernel.maps import Mapping

Ranges = list[tuple[int, int]]

_SHARED_MEMORY = ("/dev/zero", "/memfd:", "/SYSV")


class Content(Enum):
    NOTHING = "nothing"
    ANONYMOUS = "anonymous"
    PRIVATE_FILE = "private file"
    SHARED = "shared"


class Area(NamedTuple):
    """One VMA."""

    start: int
    end: int
    content: Content
    readable: bool
    object: tuple[int, int, int] = (0, 0, 0)  # major, minor, inode of shared memory
    offset: int = 0  # bytes, into the object
    unshared: bool = False  # shared memory that no descriptor leads to, as far as its name tells: MAP_ANONYMOUS


def content_of(mapping: Mapping, vm_flags: Collection[str] = ()) -> Content:
    """By a line of maps and, where at hand, the VmFlags of smaps (they alone tell that memory is MAP_DROPPABLE:
    "dp")."""
    if "dp" in vm_flags or mapping.path.startswith(("[vvar", "[vdso", "[vsyscall")):
        return Content.NOTHING
    if not mapping.shared:
        return Content.PRIVATE_FILE if mapping.file else Content.ANONYMOUS
    if mapping.path.startswith("[anon_shmem:") or (mapping.deleted and mapping.path.startswith(_SHARED_MEMORY)):
        return Content.SHARED
    return Content.NOTHING


def area_of(mapping: Mapping, content: Content) -> Area:
    if content is not Content.SHARED:
        return Area(mapping.start, mapping.end, content, mapping.readable)
    return Area(
        mapping.start,
        mapping.end,
        content,
        mapping.readable,
        (mapping.major, mapping.minor, mapping.inode),
        mapping.offset,
        mapping.path.startswith(("/dev/zero", "[anon_shmem:")),
    )


def areas(mappings: Iterable[Mapping], droppable: Collection[int] = ()) -> list[Area]:
    """All of them, lowest first; those without contents too, because trackers look at what lies between the others.
    ``droppable``: starts of the VMAs that smaps has "dp" for."""
    return [
        area_of(mapping, Content.NOTHING if mapping.start in droppable else content_of(mapping)) for mapping in mappings
    ]


def of(kind: Content, within: Iterable[Area]) -> Ranges:
    """The address ranges of one kind of content."""
    return merged((area.start, area.end) for area in within if area.content is kind)


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Adjacent ranges become one; sorted in, sorted out."""
    found: Ranges = []
    for start, end in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def sort_out(within: Sequence[Area]) -> tuple[list[Area], list[Area]]:
    """Those whose page tables tell of every write to their pages, and those that have to be compared.

    All private memory tells. Shared memory does if the VMA is the only way to it: no descriptor to write(2) to, and
    no page mapped twice. Of shared memory that is mapped twice only what no earlier VMA shows is kept, so that it is
    sent once. (Parts that overlap an earlier one partly are kept whole: sending a page twice is right, only slower.)
    """
    tracked: list[Area] = []
    compared: list[Area] = []
    once = _mapped_once(within)
    shown: set[tuple[tuple[int, int, int], int, int]] = set()
    for area in within:
        if area.content is not Content.SHARED:
            if area.content is not Content.NOTHING:
                tracked.append(area)
            continue
        part = (area.object, area.offset, area.end - area.start)
        if part in shown:
            continue
        shown.add(part)
        (tracked if area.unshared and area.object in once else compared).append(area)
    return tracked, compared


def _mapped_once(within: Iterable[Area]) -> set[tuple[int, int, int]]:
    """Objects of shared memory of which no page is mapped twice."""
    parts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for area in within:
        if area.content is Content.SHARED:
            parts.setdefault(area.object, []).append((area.offset, area.offset + area.end - area.start))
    found = set()
    for key, ranges in parts.items():
        ranges.sort()
        if all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False)):
            found.add(key)
    return found

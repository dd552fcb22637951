"""What the areas of a process take from files and other objects."""

from __future__ import annotations

from collections.abc import Iterable

from migrate.engine.kinds.needs import DEVICE, NEW_NAME, FileNeed
from migrate.engine.kinds.needs import FILE as NEED_FILE
from migrate.engine.kinds.vma import FILE, NAMED, OWN, VMA, ZERO, ZERO_DEVICE
from migrate.errors import Problem


def objects(vmas: Iterable[VMA]) -> dict[tuple[int, int], tuple[tuple[int, int], ...]]:
    """For each shared memory object, the ranges (offset, length) that are mapped, so that their contents travel with
    the memory."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for vma in vmas:
        if vma.shared and vma.backing is not None and vma.backing.kind in OWN:
            found.setdefault(vma.backing.key, []).append((vma.offset, vma.size))
    return {key: tuple(sorted(ranges)) for key, ranges in found.items()}


def files(vmas: Iterable[VMA], who: str) -> list[FileNeed]:
    """What the destination's file system must have for these areas of ``who``. A file that is only read must have the
    same content; one that is mapped for writing changes while the task runs."""
    found: dict[str, FileNeed] = {}
    for vma in vmas:
        backing = vma.backing
        if backing is None or backing.kind not in (FILE, ZERO, NAMED):
            continue
        where = f"{who} {vma.start:x}-{vma.end:x}"
        if backing.kind == NAMED:
            found.setdefault(backing.path, FileNeed(where, backing.path, NEW_NAME))
            continue
        if backing.kind == ZERO:
            found.setdefault(backing.path, FileNeed(where, backing.path, DEVICE, rdev=ZERO_DEVICE))
            continue
        writes = vma.shared and "mw" in vma.flags.split()
        need = found.get(backing.path)
        if need is None or (writes and not need.writable):
            found[backing.path] = FileNeed(
                *(where, backing.path, NEED_FILE, backing.size, backing.mtime_ns),
                content=not writes,
                writable=writes,
            )
    return list(found.values())


def unseen(spaces: Iterable[tuple[str, Iterable[VMA]]]) -> list[Problem]:
    """Shared memory with a name of which some is not mapped by any of those who move, or not to be written to: somebody
    may open it by that name and look there, and contents travel with what is mapped. ``spaces``: of each, who it is,
    and what it has."""
    shown: dict[tuple[int, int], list[tuple[str, VMA]]] = {}
    for who, vmas in spaces:
        for vma in vmas:
            if vma.shared and vma.backing is not None and vma.backing.kind == NAMED:
                shown.setdefault(vma.backing.key, []).append((who, vma))
    found = []
    for same in shown.values():
        reached = 0
        for _, vma in sorted(same, key=lambda each: each[1].offset):
            if vma.offset <= reached and "mw" in vma.flags.split():
                reached = max(reached, vma.offset + vma.size)
        who, first = same[0]
        if first.backing is not None and reached < first.backing.size:
            what = f"shared memory {first.backing.path} that is not mapped as a whole, and for writing"
            found.append(Problem(f"{who} {first.start:x}-{first.end:x}", what, "map all of it, or unlink it"))
    return found

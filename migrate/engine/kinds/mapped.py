"""What an address space has mapped that is there apart from it: objects of shared memory, and files."""

from __future__ import annotations

import os
from collections.abc import Iterable

from migrate.engine.kinds.needs import DEVICE, NEW_NAME, FileNeed
from migrate.engine.kinds.needs import FILE as NEED_FILE
from migrate.engine.kinds.vma import FILE, MADE, POSIX, SHMEM, VMA, ZERO

_ZERO_DEVICE = os.makedev(1, 5)


def mapped_objects(vmas: Iterable[VMA]) -> dict[tuple[int, int], tuple[tuple[int, int], ...]]:
    """For each shared memory object, the ranges (offset, length) that are mapped, so that their contents travel with
    the memory."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for vma in vmas:
        if vma.shared and vma.backing is not None and vma.backing.kind in (SHMEM, *MADE):
            found.setdefault(vma.backing.key, []).append((vma.offset, vma.size))
    return {key: tuple(sorted(ranges)) for key, ranges in found.items()}


def mapped_files(vmas: Iterable[VMA], who: str) -> list[FileNeed]:
    """What the destination's file system must have for these areas of ``who``. A file that is only read must have the
    same content; one that is mapped for writing changes while the task runs."""
    found: dict[str, FileNeed] = {}
    for vma in vmas:
        backing = vma.backing
        if backing is None or backing.kind not in (FILE, ZERO, POSIX):
            continue
        where = f"{who} {vma.start:x}-{vma.end:x}"
        if backing.kind == POSIX:
            found.setdefault(backing.path, FileNeed(where, backing.path, NEW_NAME))
            continue
        if backing.kind == ZERO:
            found.setdefault(backing.path, FileNeed(where, backing.path, DEVICE, rdev=_ZERO_DEVICE))
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

"""Memory shared without a name (MAP_SHARED | MAP_ANONYMOUS, memfd) that several processes of a tree have mapped.

One object stays one. The first of them that maps it makes it, and keeps a descriptor of it until all is restored; the
others take that (pidfd_getfd(2)). For memory that has no descriptor the maker opens one by its entry in
/proc/PID/map_files: then it is in no way different from a memfd, but for what maps calls it. Its contents travel once,
with the first that shows a part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from migrate.engine.kinds.vma import COMMON, MEMFD, NAMED, PROT_WRITE, SHMEM, SYSV, VMA

Key = tuple[int, int]


def objects(spaces: Sequence[Sequence[VMA]]) -> frozenset[Key]:
    """Those without a descriptor that more than one of them shows a part of."""
    seen: dict[Key, set[int]] = {}
    for position, vmas in enumerate(spaces):
        for vma in vmas:
            if vma.shared and vma.backing is not None and vma.backing.kind in (SHMEM, COMMON):
                seen.setdefault(vma.backing.key, set()).add(position)
    return frozenset(key for key, positions in seen.items() if len(positions) > 1)


def named(vmas: Sequence[VMA], keys: Collection[Key]) -> list[VMA]:
    """The VMAs of one of them, with the common ones as such."""
    return [
        replace(vma, backing=replace(vma.backing, kind=COMMON))
        if vma.backing is not None and vma.shared and vma.backing.kind == SHMEM and vma.backing.key in keys
        else vma
        for vma in vmas
    ]


def elsewhere(spaces: Sequence[Sequence[VMA]]) -> list[frozenset[int]]:
    """For each, the starts of those VMAs of which an earlier one shows the whole part of the object; and of those that
    cannot be filled, for they are for reading only, where any does."""
    shown: dict[Key, list[tuple[int, int]]] = {}
    found: list[set[int]] = [set() for _ in spaces]

    def is_shown(vma: VMA, key: Key) -> bool:
        low, high = vma.offset, vma.offset + vma.size
        return any(start <= low and high <= end for start, end in shown.get(key, ()))

    unfillable = []
    for starts, vmas in zip(found, spaces, strict=True):
        own: dict[Key, list[tuple[int, int]]] = {}
        for vma in vmas:
            if not vma.shared or vma.backing is None or vma.backing.kind not in (COMMON, MEMFD, NAMED, SYSV):
                continue
            if not vma.fill_prot & PROT_WRITE:
                unfillable.append((starts, vma, vma.backing.key))
            elif is_shown(vma, vma.backing.key):
                starts.add(vma.start)
            else:
                own.setdefault(vma.backing.key, []).append((vma.offset, vma.offset + vma.size))
        for key, ranges in own.items():
            shown.setdefault(key, []).extend(ranges)
    for starts, vma, key in unfillable:
        if is_shown(vma, key):
            starts.add(vma.start)
    return [frozenset(starts) for starts in found]

"""What becomes of the areas of an address space when another one is to be made of it."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from migrate.engine.kinds.mapping import bridgeable, rules
from migrate.engine.kinds.vma import PROT_WRITE, RW, SHMEM, VMA, displaced
from migrate.engine.memory.layout import Range

CHEAP = 256 << 10  # bytes that may be sent again so that an area is one


class Plan:
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
        missing = minus((vma.start, vma.end), covered)
        if vma.backing is None:
            over = self._one_run(over, vma)
            covered = [(max(was.start, vma.start), min(was.end, vma.end)) for was in over]
            missing = minus((vma.start, vma.end), covered)
            # New parts merge with the kept: same flags, and page offsets that follow from the addresses.
            self.made += [part(vma, start, end) for start, end in missing]
        elif len(over) == 1 and len(missing) == 1 and missing[0][1] == vma.end and over[0].end == missing[0][0]:
            self.grown.append((over[0], vma))
        elif missing:
            self.made.append(vma)
            return
        self._kept += covered
        self._stay += [part(vma, start, end) for start, end in covered]
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
            for start, end in minus((was.start, was.end), over):
                if found and found[-1][1] == start:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
        return found


def part(vma: VMA, start: int, end: int) -> VMA:
    """Of an area, what is between ``start`` and ``end``."""
    offset = vma.offset + start - vma.start if vma.backing else 0
    return VMA(start, end, vma.prot, vma.shared, vma.backing, offset, vma.name, vma.flags, vma.pkey, vma.policy)


def minus(whole: Range, parts: Iterable[Range]) -> list[Range]:
    """What of a range is in none of the parts."""
    found, at = [], whole[0]
    for start, end in sorted(parts):
        if start > at:
            found.append((at, start))
        at = max(at, end)
    if at < whole[1]:
        found.append((at, whole[1]))
    return found

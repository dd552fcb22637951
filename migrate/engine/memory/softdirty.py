"""Dirty pages by the soft-dirty bit (CONFIG_MEM_SOFT_DIRTY; Documentation/admin-guide/mm/soft-dirty.rst)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from migrate.engine.kernel.pagemap import Pagemap, anonymous, populated, soft_dirty
from migrate.engine.kernel.proc import Proc
from migrate.engine.memory.area import Area, Content, sort_out
from migrate.engine.memory.digests import DigestTracker
from migrate.engine.memory.pageset import CHUNK, PAGE, PageSet
from migrate.engine.memory.tracker import Scan, Tracker

_SPAN = CHUNK * PAGE


class SoftDirtyTracker(Tracker):
    """Writing 4 to clear_refs takes the bit from all pages of the task, and the right to write, so that the next
    write sets it again. New and moved VMAs count as soft-dirty as a whole (VM_SOFTDIRTY).

    There is no way to read and clear at once: what is written between would be lost. The task must be stopped for a
    protecting scan.
    """

    name = "soft-dirty bits"
    stop_to_scan = True

    def __init__(self, process: Proc) -> None:
        self._process = process
        self._pagemap = Pagemap(process)
        self._clear = process.open("clear_refs", os.O_WRONLY)
        self._others = DigestTracker(process)
        self._started = False

    def scan(self, areas: Sequence[Area], held: PageSet, protect: bool = True) -> Scan:
        tracked, compared = sort_out(areas)
        # The bit belongs to a page-table entry, and with shared memory that may be taken away and come back clean
        # (MADV_DONTNEED, reclaim) while the object keeps what was written.
        shared = [area for area in tracked if area.content is Content.SHARED]
        found = self._others.compare([*compared, *shared], held)
        for area in tracked:
            if area.content is not Content.SHARED:
                self._look(area, held, found)
        if protect:
            os.write(self._clear, b"4")
            self._started = True
        return found

    def _look(self, area: Area, held: PageSet, found: Scan) -> None:
        entries_of = anonymous if area.content is Content.PRIVATE_FILE else populated
        there = PageSet()
        for start in range(area.start, area.end, _SPAN):
            entries = self._pagemap.entries(start, min(start + _SPAN, area.end))
            present = entries_of(entries)
            there.add_bytes(start, present)
            # Before the first clearing the bits tell of nothing, or of somebody else's clearing.
            found.written.add_bytes(start, written(entries, present) if self._started else present)
        found.gone |= held.clip([(area.start, area.end)]) - there

    @property
    def compares(self) -> bool:
        return self._others.compares

    def sent(self, address: int, contents: memoryview) -> None:
        self._others.sent(address, contents)

    def close(self) -> None:
        self._pagemap.close()
        self._others.close()
        if self._clear >= 0:
            os.close(self._clear)
            self._clear = -1


def written(entries: bytes, present: bytes) -> bytes:
    """One byte a page, 1: there, and written to."""
    both = int.from_bytes(soft_dirty(entries), "little") & int.from_bytes(present, "little")
    return both.to_bytes(len(present), "little")

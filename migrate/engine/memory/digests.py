"""Dirty pages by comparing: a digest of each page that was sent. Works on every kernel, reads all memory at every
scan."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b

from migrate.engine.kernel.pagemap import Pagemap, anonymous, populated
from migrate.engine.kernel.probes import has_forced_reads
from migrate.engine.kernel.proc import Proc
from migrate.engine.memory.area import Area, Content, Ranges, sort_out
from migrate.engine.memory.pageset import CHUNK, PAGE, PageSet
from migrate.engine.memory.remote import ForeignMemory
from migrate.engine.memory.shmem import object_pages
from migrate.engine.memory.tracker import Scan, Tracker

_SIZE = 16  # bytes of a digest; an accident in 2**128
_NONE = bytes(_SIZE)
_ZEROS = bytes(PAGE)
_STEP = 256  # pages read at a time
_SPAN = CHUNK * PAGE


class DigestTracker(Tracker):
    """Compares each page with the digest of what was *sent*, not of what the last scan saw: a page may change
    between a scan and its sending, and change back. So digests come in through `sent`, and a page that differs has
    none until then. Digests count only for pages that the destination holds: it loses pages in ways of which nobody
    tells us (its VMA is unmapped, or mapped anew).
    """

    name = "page digests"
    stop_to_scan = False

    def __init__(self, process: Proc, gently: bool = False) -> None:
        """``gently``: see `ForeignMemory`."""
        self._process = process
        self._pagemap = Pagemap(process)
        self._memory = ForeignMemory(process, gently)
        self._compared: Ranges = []  # what the last scan looked at
        self._digests: dict[int, bytearray] = {}  # address // _SPAN -> _SIZE bytes for each page; all zero: not sent

    def stops(self, areas: Sequence[Area]) -> bool:
        """For what the task itself cannot read, where the kernel gives that to its tracer alone."""
        if has_forced_reads():
            return False
        return any(not area.readable and area.content is not Content.NOTHING for area in areas)

    def scan(self, areas: Sequence[Area], held: PageSet, protect: bool = True) -> Scan:
        """``protect`` makes no difference: what counts is what was sent."""
        tracked, compared = sort_out(areas)
        return self.compare([*tracked, *compared], held)

    def compare(self, areas: Sequence[Area], held: PageSet) -> Scan:
        """The same for areas that are sorted out already."""
        found = Scan()
        self._compared = [(area.start, area.end) for area in sorted(areas, key=_start)]
        for area in areas:
            there = self._there(area)
            self._read(area, there, held, found)
            found.gone |= held.clip([(area.start, area.end)]) - there
        return found

    def _there(self, area: Area) -> PageSet:
        if area.content is Content.SHARED:
            return object_pages(self._process, area)
        found = PageSet()
        entries_of = anonymous if area.content is Content.PRIVATE_FILE else populated
        for start in range(area.start, area.end, _SPAN):
            found.add_bytes(start, entries_of(self._pagemap.entries(start, min(start + _SPAN, area.end))))
        return found

    def _read(self, area: Area, there: PageSet, held: PageSet, found: Scan) -> None:
        buffer = bytearray(_STEP * PAGE)
        view = memoryview(buffer)
        for address, pages in list(there.runs()):
            for at in range(address, address + pages * PAGE, _STEP * PAGE):
                count = min(_STEP, (address + pages * PAGE - at) // PAGE)
                missing = self._memory.read(view, [(at, count)], area.readable)
                for index in range(count):
                    page = at + index * PAGE
                    if index in missing:
                        there.discard(page, page + PAGE)
                    elif area.content is not Content.PRIVATE_FILE and buffer.startswith(_ZEROS, index * PAGE):
                        # As good as nothing: the destination need not hold anything for it.
                        there.discard(page, page + PAGE)
                    elif page not in held or self._differs(page, view[index * PAGE : (index + 1) * PAGE]):
                        found.written.add(page, page + PAGE)

    def was_sent(self, address: int, page: memoryview) -> bool:
        """Whether these are the contents that went to the destination last. Only for pages that it holds."""
        return blake2b(page, digest_size=_SIZE).digest() == self._get(address)

    def _differs(self, address: int, page: memoryview) -> bool:
        if self.was_sent(address, page):
            return False
        self._set(address, _NONE)
        return True

    def _get(self, address: int) -> bytes:
        chunk = self._digests.get(address // _SPAN)
        at = address % _SPAN // PAGE * _SIZE
        return _NONE if chunk is None else bytes(chunk[at : at + _SIZE])

    def _set(self, address: int, digest: bytes) -> None:
        chunk = self._digests.get(address // _SPAN)
        if chunk is None:
            if digest == _NONE:
                return
            chunk = self._digests[address // _SPAN] = bytearray(CHUNK * _SIZE)
        at = address % _SPAN // PAGE * _SIZE
        chunk[at : at + _SIZE] = digest

    @property
    def compares(self) -> bool:
        return bool(self._compared)

    def sent(self, address: int, contents: memoryview) -> None:
        end = address + len(contents)
        for low, high in self._compared[max(0, bisect_right(self._compared, (address, end)) - 1) :]:
            if low >= end:
                break
            for page in range(max(low, address), min(high, end), PAGE):
                at = page - address
                self._set(page, blake2b(contents[at : at + PAGE], digest_size=_SIZE).digest())

    def close(self) -> None:
        self._pagemap.close()
        self._memory.close()
        self._digests.clear()


def _start(area: Area) -> int:
    return area.start

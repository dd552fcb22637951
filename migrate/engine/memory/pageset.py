"""Sets of pages of one address space, as fast as pure Python can be.

A set is cut into chunks of 16 MiB of addresses; a chunk that has a page is 4096 bytes, one for each page, 0 or 1. So
the algebra is done by big integers, runs are found by a regular expression, and the cost does not depend on how many
VMAs there are: 1 GiB of dense memory is 64 chunks, and a sparse terabyte costs what is in it. (Lists of intervals
would be smaller and slower by an order of magnitude when every other page was written; a single byte string for each
VMA is slower with thousands of small VMAs and impossible with a reservation of terabytes.)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

PAGE = 4096
PAGE_SHIFT = 12
_SHIFT = 12  # pages of a chunk, log2
CHUNK = 1 << _SHIFT  # pages of a chunk, and bytes of its set
_INSIDE = CHUNK - 1
_ONES = b"\1" * CHUNK
_RUN = re.compile(rb"\x01+")


class PageSet:
    """A mutable set of pages. Addresses are bytes and multiples of PAGE; ranges are half open."""

    __slots__ = ("chunks",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.chunks: dict[int, bytearray] = {}  # page number >> _SHIFT -> a byte a page; never all zero
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """All pages of [start, end)."""
        page, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        chunks = self.chunks
        while page < last:
            key, first = page >> _SHIFT, page & _INSIDE
            count = min(CHUNK - first, last - page)
            chunk = chunks.get(key)
            if chunk is None:
                chunk = chunks[key] = bytearray(CHUNK)
            if count == 1:
                chunk[first] = 1
            else:
                chunk[first : first + count] = _ONES[:count]
            page += count

    def add_bytes(self, start: int, present: bytes) -> None:
        """Pages from ``start`` on, as one byte each, 0 or 1."""
        for match in _RUN.finditer(present):
            low, high = match.span()
            self.add(start + (low << PAGE_SHIFT), start + (high << PAGE_SHIFT))

    def discard(self, start: int, end: int) -> None:
        """Take all pages of [start, end) out."""
        first_key, last_key = start >> PAGE_SHIFT + _SHIFT, (end - 1) >> PAGE_SHIFT + _SHIFT
        if last_key - first_key > len(self.chunks):
            keys = [key for key in self.chunks if first_key <= key <= last_key]
        else:
            keys = [key for key in range(first_key, last_key + 1) if key in self.chunks]
        for key in keys:
            base = key << _SHIFT
            chunk = self.chunks[key]
            low, high = max(0, (start >> PAGE_SHIFT) - base), min(CHUNK, (end >> PAGE_SHIFT) - base)
            if low < high:
                chunk[low:high] = bytes(high - low)
                if 1 not in chunk:
                    del self.chunks[key]

    def __contains__(self, address: int) -> bool:
        page = address >> PAGE_SHIFT
        chunk = self.chunks.get(page >> _SHIFT)
        return chunk is not None and chunk[page & _INSIDE] == 1

    def __bool__(self) -> bool:
        return bool(self.chunks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PageSet) and self.chunks == other.chunks

    def __len__(self) -> int:
        """Pages."""
        return sum(chunk.count(1) for chunk in self.chunks.values())

    def copy(self) -> PageSet:
        found = PageSet()
        found.chunks = {key: chunk[:] for key, chunk in self.chunks.items()}
        return found

    def __and__(self, other: PageSet) -> PageSet:
        found = PageSet()
        for key in self.chunks.keys() & other.chunks.keys():
            both = _number(self.chunks[key]) & _number(other.chunks[key])
            if both:
                found.chunks[key] = _chunk(both)
        return found

    def __or__(self, other: PageSet) -> PageSet:
        found = self.copy()
        found |= other
        return found

    def __ior__(self, other: PageSet) -> PageSet:  # noqa: PYI034 - there are no subclasses
        chunks = self.chunks
        for key, chunk in other.chunks.items():
            mine = chunks.get(key)
            chunks[key] = chunk[:] if mine is None else _chunk(_number(mine) | _number(chunk))
        return self

    def __sub__(self, other: PageSet) -> PageSet:
        found = PageSet()
        for key, chunk in self.chunks.items():
            theirs = other.chunks.get(key)
            if theirs is None:
                found.chunks[key] = chunk[:]
            elif rest := _number(chunk) & ~_number(theirs):
                found.chunks[key] = _chunk(rest)
        return found

    def clip(self, ranges: Sequence[tuple[int, int]]) -> PageSet:
        """Only what lies in these ranges, which are sorted and do not overlap. They may be huge and many."""
        found = PageSet()
        if not ranges:
            return found
        for key, chunk in self.chunks.items():
            base = key << _SHIFT
            mask = bytearray(CHUNK)
            # The one before may reach into the chunk.
            for index in range(max(0, bisect_left(ranges, (base << PAGE_SHIFT,)) - 1), len(ranges)):
                start, end = ranges[index]
                low = (start >> PAGE_SHIFT) - base
                if low >= CHUNK:
                    break
                low, high = max(0, low), min(CHUNK, (end >> PAGE_SHIFT) - base)
                if low < high:
                    mask[low:high] = chunk[low:high]
            if 1 in mask:
                found.chunks[key] = mask
        return found

    def runs(self) -> Iterator[tuple[int, int]]:
        """(address, pages) of each maximal run, lowest first."""
        start = end = -1  # the run that may go on, in pages
        for key in sorted(self.chunks):
            base = key << _SHIFT
            for match in _RUN.finditer(self.chunks[key]):
                low, high = match.span()
                if base + low == end:
                    end = base + high
                    continue
                if start >= 0:
                    yield start << PAGE_SHIFT, end - start
                start, end = base + low, base + high
        if start >= 0:
            yield start << PAGE_SHIFT, end - start

    def __repr__(self) -> str:
        runs = ", ".join(f"{address:#x}+{pages}" for address, pages in list(self.runs())[:8])
        return f"PageSet({len(self)} pages: {runs})"


def _number(chunk: bytearray) -> int:
    return int.from_bytes(chunk, "little")


def _chunk(number: int) -> bytearray:
    return bytearray(number.to_bytes(CHUNK, "little"))

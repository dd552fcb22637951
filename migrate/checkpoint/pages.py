"""The file ``pages``: contents of pages of all processes, in the order in which they came first.

A page that comes again, written meanwhile, goes to the place that it has. A page that an ancestor has just like that
is not written at all: contents are compared, not digests, as the ancestor must be there to be restored anyway. Each
block of 1 MiB has a CRC-32C, which finds damage, not forgery.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cffi import FFI

from migrate.checkpoint.format import BLOCK, PAGE, Extent
from migrate.engine.kernel.buffers import address_of
from migrate.errors import ImageError
from migrate.pie.checksum import crc32c

CONTENTS = 0  # of a page run: see migrate.transport.frames
_SHIFT = 12
_CHUNK = 1 << _SHIFT  # pages of address space that are looked up together
_FILE = 40  # bits of the place of a page in its file; above them is the number of the file
_PLACE = (1 << _FILE) - 1
_IOV_MAX = 1024
_NOTHING = array("Q", bytes(8 * _CHUNK))

_ffi = FFI()
_ffi.cdef("int memcmp(uintptr_t, uintptr_t, size_t);")
_libc: Any = _ffi.dlopen(None)

Buffer = bytes | bytearray | memoryview


class PageMap:
    """Where each page of a process is: its file and its place there."""

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}  # 1 + (file << _FILE | place), by page; 0 for none

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def pieces(self, address: int, pages: int) -> Iterator[tuple[int, int, int, int]]:
        """What is known of a range: (address, pages, file, place); a file of -1 for pages that are nowhere."""
        for key, first, count in _split(address, pages):
            chunk = self._chunks.get(key)
            start = (key << _SHIFT) + first
            if chunk is None or not any(chunk[first : first + count]):
                yield start * PAGE, count, -1, 0
                continue
            yield from _runs(start, chunk[first : first + count])

    def set(self, address: int, pages: int, file: int, place: int) -> None:
        """These pages are in ``file`` from ``place`` on."""
        for key, first, count in _split(address, pages):
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._chunks[key] = _NOTHING[:]
            value = 1 + (file << _FILE | place)
            chunk[first : first + count] = array("Q", range(value, value + count))
            place += count

    def forget(self, address: int, pages: int) -> None:
        """The process has nothing there any more."""
        for key, first, count in _split(address, pages):
            if key in self._chunks:
                self._chunks[key][first : first + count] = _NOTHING[:count]

    def keep(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Forget all that is not in these ranges, which are sorted."""
        behind = 0
        last = (max(self._chunks, default=-1) + 1) << _SHIFT
        for start, end in [*ranges, (last * PAGE, last * PAGE)]:
            low, high = behind >> _SHIFT, start // PAGE >> _SHIFT
            for key in [key for key in self._chunks if low <= key <= high]:
                base = key << _SHIFT
                first, count = max(behind, base), min(start // PAGE, base + _CHUNK)
                if first < count:
                    self.forget(first * PAGE, count - first)
            behind = max(behind, end // PAGE)

    def extents(self) -> Iterator[Extent]:
        """All of them, lowest address first."""
        last: Extent | None = None
        for key in sorted(self._chunks):
            for address, pages, file, place in _runs(key << _SHIFT, self._chunks[key]):
                if file < 0:
                    continue
                if last is not None and _continues(last, address, file, place) and last.pages + pages < 1 << 32:
                    last = last._replace(pages=last.pages + pages)
                    continue
                if last is not None:
                    yield last
                last = Extent(address, pages, file, place)
        if last is not None:
            yield last


_NOWHERE = PageMap()


def _continues(last: Extent, address: int, file: int, place: int) -> bool:
    return last.address + last.pages * PAGE == address and last.file == file and last.at + last.pages == place


def _split(address: int, pages: int) -> Iterator[tuple[int, int, int]]:
    """A range by chunks: (key, first page in it, pages)."""
    page, end = address // PAGE, address // PAGE + pages
    while page < end:
        first = page & _CHUNK - 1
        count = min(_CHUNK - first, end - page)
        yield page >> _SHIFT, first, count
        page += count


def _runs(page: int, values: array[int]) -> Iterator[tuple[int, int, int, int]]:
    """(address, pages, file or -1, place) of entries in a row."""
    at, size = 0, len(values)
    while at < size:
        value, start = values[at], at
        # Mostly all of it: one comparison in C
        if value and values[at:] == array("Q", range(value, value + size - at)):
            at = size
        else:
            at += 1
            while at < size and values[at] == (value + at - start if value else 0):
                at += 1
        file, place = divmod(value - 1, 1 << _FILE) if value else (-1, 0)
        yield (page + start) * PAGE, at - start, file, place


class Ancestor:
    """Pages that an earlier checkpoint has, or that those before it have. ``files``: a descriptor of the pages of each
    file that its extents name; ``known``: where the pages of each process are, by PID, and by the numbers of files
    that this checkpoint uses."""

    def __init__(self, files: dict[int, int], known: dict[int, PageMap]) -> None:
        self._files, self._known = files, known
        self._buffer = bytearray(_CHUNK * PAGE)

    def same(self, pid: int, address: int, contents: memoryview) -> Iterator[tuple[int, int, int, int]]:
        """(address, pages, file or -1, place): the pages that it has just so, and those that it has not."""
        base = address
        for start, pages, file, place in self._known.get(pid, _NOWHERE).pieces(address, len(contents) // PAGE):
            if file < 0:
                yield start, pages, -1, 0
                continue
            view = memoryview(self._buffer)[: pages * PAGE]
            read(self._files[file], view, place * PAGE, "pages of an ancestor")
            mine, its = address_of(contents[start - base :]), address_of(view)
            if not _libc.memcmp(mine, its, pages * PAGE):
                yield start, pages, file, place
                continue
            at = 0
            while at < pages:
                first, equal = at, not _libc.memcmp(mine + at * PAGE, its + at * PAGE, PAGE)
                at += 1
                while at < pages and equal == (not _libc.memcmp(mine + at * PAGE, its + at * PAGE, PAGE)):
                    at += 1
                yield start + first * PAGE, at - first, file if equal else -1, place + first if equal else 0


class PageWriter:
    """Takes page frames, and writes their contents to a file. `maps`: where the pages of each process are, by its
    id."""

    def __init__(self, fd: int, ancestor: Ancestor | None = None) -> None:
        self._fd, self._ancestor = fd, ancestor
        self._pids: Mapping[int, int] = {}
        self.maps: dict[int, PageMap] = {}
        self.pages = 0  # in the file
        self._sums = array("I")
        self._stale: set[int] = set()  # blocks that were written to again

    def follow(self, pids: Mapping[int, int], renewed: Sequence[int] = ()) -> None:
        """``pids``: of the processes that there are, by id; ``renewed``: those that have begun anew."""
        self._pids = pids
        self.maps = {id: PageMap() if id in renewed else self.maps.get(id) or PageMap() for id in pids}

    def take(self, id: int, runs: Sequence[tuple[int, int, int]], contents: Buffer) -> None:
        """``id``: of the process; ``runs``: address, pages and what is done to them, as
        `migrate.transport.frames` has it."""
        view, at = memoryview(contents), 0
        fresh: list[memoryview] = []
        for address, pages, what in runs:
            if what != CONTENTS:
                self.maps[id].forget(address, pages)
                continue
            self._put(id, address, view[at : at + pages * PAGE], fresh)
            at += pages * PAGE
        self._append(fresh)

    def _put(self, id: int, address: int, contents: memoryview, fresh: list[memoryview]) -> None:
        known = self.maps[id]
        if self._ancestor is None:
            self._own(known, address, contents, fresh)
            return
        for start, pages, file, place in self._ancestor.same(self._pids[id], address, contents):
            if file >= 0:
                known.set(start, pages, file, place)
            else:
                self._own(known, start, contents[start - address : start - address + pages * PAGE], fresh)

    def _own(self, known: PageMap, address: int, contents: memoryview, fresh: list[memoryview]) -> None:
        for start, pages, file, place in list(known.pieces(address, len(contents) // PAGE)):
            part = contents[start - address : start - address + pages * PAGE]
            if file == 0 and place < self.pages:
                write(self._fd, [part], place * PAGE)
                self._stale.update(range(place * PAGE // BLOCK, -(-(place + pages) * PAGE // BLOCK)))
                continue
            place = self.pages + sum(map(len, fresh)) // PAGE
            known.set(start, pages, 0, place)
            fresh.append(part)

    def _append(self, fresh: list[memoryview]) -> None:
        if not fresh:
            return
        write(self._fd, fresh, self.pages * PAGE)
        for part in fresh:
            while part:
                used = self.pages * PAGE % BLOCK
                piece = part[: BLOCK - used]
                if used:
                    self._sums[-1] = crc32c(piece, self._sums[-1])
                else:
                    self._sums.append(crc32c(piece))
                self.pages += len(piece) // PAGE
                part = part[len(piece) :]

    def sums(self) -> bytes:
        """The file ``sums``."""
        for block in sorted(self._stale):
            buffer = bytearray(min(BLOCK, self.pages * PAGE - block * BLOCK))
            read(self._fd, memoryview(buffer), block * BLOCK, "the pages that were written")
            self._sums[block] = crc32c(buffer)
        self._stale.clear()
        return b"".join(value.to_bytes(4, "little") for value in self._sums)


def write(fd: int, parts: Sequence[Buffer], offset: int) -> None:
    """All of it, at an offset."""
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        written = os.pwritev(fd, left[:_IOV_MAX], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def read(fd: int, view: memoryview, offset: int, what: str) -> None:
    """All of it, from an offset. ImageError: the file is shorter."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise ImageError(f"{what}: cut off {len(view) - done} bytes before the end of what was asked for")
        done += got


def check_blocks(fd: int, sums: bytes, size: int, blocks: Sequence[int], where: str) -> None:
    """ImageError unless these blocks of a file of pages are as they were written. ``sums``: the file of that name."""
    buffer = memoryview(bytearray(BLOCK))
    for block in blocks:
        view = buffer[: min(BLOCK, size - block * BLOCK)]
        read(fd, view, block * BLOCK, where)
        if crc32c(view) != int.from_bytes(sums[4 * block : 4 * block + 4], "little"):
            raise ImageError(f"{where}: the checksum of block {block} (from byte {block * BLOCK}) is wrong")

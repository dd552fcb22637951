"""Digests of the pages of a process that stands still: both sides of a move are asked, and must answer the same.

A record is the address of a page and its digest, 8 bytes each, in order of address. A digest is CRC-32 and Adler-32
(RFC 1950 and 1952) side by side: they are in every Python, and page by page CRC-32 does 2.1 GB/s where BLAKE2b does
0.26 (measured). What is looked for is damage, not a forger, who could as well forge the answer.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

ANONYMOUS, PRIVATE_FILE, SHARED, ALL = range(4)
"""What counts as a page of an area: one that is there and not zero · one of the process's own · one that the object
has and that is not zero · every one."""

PAGE = 4096
LIMIT = 1 << 16  # pages that are read for one answer
_STEP = 256  # pages read at a time
_ZEROS = bytes(PAGE)
_RECORD = struct.Struct("<QQ")
_RUN = re.compile(rb"\x01+")
_PAGEMAP_SCAN = 0xC0606610  # Documentation/admin-guide/mm/pagemap.rst; since 6.7
_SCAN_ARG = struct.Struct("<12Q")
_FILE, _THERE = 1 << 2, 1 << 3 | 1 << 4  # PAGE_IS_FILE; PAGE_IS_PRESENT and PAGE_IS_SWAPPED
_REGIONS = 4096
_SPAN = 1 << 31  # bytes of address space looked through at a time, where there is no PAGEMAP_SCAN
# Highest byte of a pagemap entry: present, swapped, of a file (proc_pid_pagemap(5))
_HELD = bytes(1 if byte & 0xC0 else 0 for byte in range(256))
_OWN = bytes(1 if byte & 0xC0 and not byte & 0x20 else 0 for byte in range(256))


def digests(
    pid: int, areas: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], limit: int = LIMIT
) -> tuple[dict[str, Any], bytes]:
    """Records of the pages of ``areas`` (start, end, what counts, offset into the object), which are sorted.

    :param masks: (address, length) of bytes that count as zero: the kernel writes there.
    :return: ``next``, where to go on, or None at the end; ``unread``: (address, pages) that are there and cannot be
        read; and the records.
    """
    process = _Process(pid, masks)
    try:
        records = bytearray()
        for start, end, kind, offset in areas:
            for address, pages in process.pages(start, end, kind, offset):
                for at in range(address, address + pages * PAGE, _STEP * PAGE):
                    count = min(_STEP, (address + pages * PAGE - at) // PAGE)
                    process.digest(at, count, kind in (PRIVATE_FILE, ALL), records)
                    limit -= count
                    if limit <= 0:
                        return {"next": at + count * PAGE, "unread": process.unread}, bytes(records)
        return {"next": None, "unread": process.unread}, bytes(records)
    finally:
        process.close()


class _Process:
    """One process, and a buffer."""

    def __init__(self, pid: int, masks: Sequence[Sequence[int]]) -> None:
        self._path = f"/proc/{pid}"
        self._buffer = bytearray(_STEP * PAGE)
        self._view = memoryview(self._buffer)
        self._masks: dict[int, list[tuple[int, int]]] = {}  # page -> offset, length
        for address, length in masks:
            if not 0 < length <= PAGE:
                raise ValueError(f"a mask of {length} bytes")
            while length > 0:
                part = min(length, PAGE - address % PAGE)
                self._masks.setdefault(address - address % PAGE, []).append((address % PAGE, part))
                address, length = address + part, length - part
        self.unread: list[tuple[int, int]] = []
        self._mem = os.open(f"{self._path}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._pagemap = os.open(f"{self._path}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._mem)
        os.close(self._pagemap)

    # Which pages

    def pages(self, start: int, end: int, kind: int, offset: int) -> Iterator[tuple[int, int]]:
        """(address, pages) of those that count."""
        if kind == ALL:
            return iter([(start, (end - start) // PAGE)])
        return self._of_object(start, end, offset) if kind == SHARED else self._scan(start, end, kind == PRIVATE_FILE)

    def _of_object(self, start: int, end: int, offset: int) -> Iterator[tuple[int, int]]:
        try:
            fd = os.open(f"{self._path}/map_files/{start:x}-{end:x}", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:  # it takes CAP_CHECKPOINT_RESTORE outside of any user namespace (proc_pid_map_files(5))
            yield start, (end - start) // PAGE
            return
        try:
            last = min(offset + end - start, os.fstat(fd).st_size)
            while offset < last:
                try:
                    data = os.lseek(fd, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # nothing behind here, lseek(2)
                        raise
                    return
                hole = min(os.lseek(fd, data, os.SEEK_HOLE), last)
                low, high = data // PAGE * PAGE, -(-hole // PAGE) * PAGE
                if low < high:
                    yield start + low - offset, (high - low) // PAGE
                start, offset = start + hole - offset, hole
        finally:
            os.close(fd)

    def _scan(self, start: int, end: int, own: bool) -> Iterator[tuple[int, int]]:
        vec = ctypes.create_string_buffer(_REGIONS * 24)
        arg = bytearray(_SCAN_ARG.size)
        excluded = _FILE if own else 0
        while start < end:
            _SCAN_ARG.pack_into(
                arg, 0, _SCAN_ARG.size, 0, start, end, 0, ctypes.addressof(vec), _REGIONS, 0, excluded, excluded,
                _THERE, _THERE,
            )
            try:
                found = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, arg, True)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                yield from self._entries(start, end, _OWN if own else _HELD)
                return
            for index in range(found):
                low, high, _ = struct.unpack_from("<3Q", vec, index * 24)
                yield low, (high - low) // PAGE
            walked = int.from_bytes(arg[32:40], "little")  # walk_end
            if walked <= start:
                raise OSError(errno.ESRCH, "its address space is gone", self._path)
            start = walked

    def _entries(self, start: int, end: int, table: bytes) -> Iterator[tuple[int, int]]:
        for low in range(start, end, _SPAN):
            entries = os.pread(self._pagemap, (min(low + _SPAN, end) - low) // PAGE * 8, low // PAGE * 8)
            for match in _RUN.finditer(entries[7::8].translate(table)):
                first, last = match.span()
                yield low + first * PAGE, last - first

    # What is in them

    def digest(self, address: int, pages: int, zeros: bool, records: bytearray) -> None:
        """Append their records. ``zeros``: pages of zeros have one, too."""
        done = 0
        while done < pages:
            view = self._view[: (pages - done) * PAGE]
            at = address + done * PAGE
            try:
                got = os.preadv(self._mem, [view], at) // PAGE
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT):
                    raise
                got = 0
            if not got:
                # A guard page, the end of a file; or the kernel keeps it from all but the process (proc_mem.*)
                self.unread.append((at, 1))
                done += 1
                continue
            self._append(at, got, zeros, records)
            done += got

    def _append(self, address: int, pages: int, zeros: bool, records: bytearray) -> None:
        buffer, masks = self._buffer, self._masks
        for index in range(pages):
            at, page = index * PAGE, address + index * PAGE
            for offset, length in masks.get(page, ()):
                buffer[at + offset : at + offset + length] = bytes(length)
            if not zeros and buffer.startswith(_ZEROS, at):
                continue
            contents = self._view[at : at + PAGE]
            records += _RECORD.pack(page, zlib.crc32(contents) << 32 | zlib.adler32(contents))

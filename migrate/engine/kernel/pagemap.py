"""/proc/PID/pagemap: its entries (proc_pid_pagemap(5)) and the ioctl PAGEMAP_SCAN
(Documentation/admin-guide/mm/pagemap.rst; "fs/proc/task_mmu: implement IOCTL to get and optionally clear info about
PTEs", 6.7)."""

from __future__ import annotations

import fcntl
import os
import struct
from array import array
from collections.abc import Iterator
from enum import IntFlag

from migrate.engine.kernel.buffers import address_of
from migrate.engine.kernel.proc import Proc

PAGE = 4096
ENTRY = 8  # bytes of an entry

# Bits of the highest byte of an entry, and of the one below (Documentation/admin-guide/mm/pagemap.rst).
PRESENT, SWAPPED, FILE = 1 << 7, 1 << 6, 1 << 5  # bits 63, 62, 61: file page or shared anonymous
GUARD, UFFD_WP = 1 << 2, 1 << 1  # bits 58 (since 6.15) and 57 (since 5.14)
EXCLUSIVE = 1 << 0  # bit 56: no other page table has it
SOFT_DIRTY = 1 << 7  # bit 55, in the byte below

PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
PM_SCAN_WP_MATCHING = 1
PM_SCAN_CHECK_WPASYNC = 2
SCAN_ARG = struct.Struct("<12Q")
"""struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
category_anyof_mask, return_mask."""

_WALK_END = 4 * 8  # offset of walk_end
_REGION = 24  # struct page_region: start, end, categories


class Category(IntFlag):
    """PAGE_IS_* of linux/fs.h."""

    WPALLOWED = 1 << 0  # its VMA is registered for asynchronous write protection
    WRITTEN = 1 << 1  # not write-protected (true of every page of a VMA that is not registered, and of holes)
    FILE = 1 << 2  # of a file or of shared memory
    PRESENT = 1 << 3
    SWAPPED = 1 << 4  # also said of markers: a protected hole, a guard page
    PFNZERO = 1 << 5  # the zero page
    HUGE = 1 << 6
    SOFT_DIRTY = 1 << 7
    GUARD = 1 << 8  # since 6.15


class Pagemap:
    """/proc/PID/pagemap held open. Close it after use.

    Physical page numbers in it are zero for those without CAP_SYS_ADMIN (`probes.has_frame_numbers`).
    """

    def __init__(self, process: Proc, regions: int = 1 << 16) -> None:
        self.fd = process.open("pagemap")
        self._vec = bytearray(regions * _REGION)
        self._vec_at = address_of(self._vec)
        self._arg = bytearray(SCAN_ARG.size)

    def scan(
        self,
        start: int,
        end: int,
        *,
        flags: int = 0,
        inverted: int = 0,
        mask: int = 0,
        anyof: int = 0,
        returns: int = 0,
    ) -> Iterator[tuple[int, int, int]]:
        """(start, end, categories) of the runs of pages in [start, end) that match: all categories of ``mask``, at
        least one of ``anyof``, those in ``inverted`` negated. Use the iterator up: the walk goes on from call to
        call.

        With PM_SCAN_WP_MATCHING the pages that are reported are protected in the same moment; VMAs that are not
        registered are passed over then (measured on 6.18; PM_SCAN_CHECK_WPASYNC turns them into EPERM). OSError:
        ENOTTY before 6.7; EINVAL for a category that this kernel does not know; ESRCH: the process is gone.
        """
        arg, vec = self._arg, self._vec
        room = len(vec) // _REGION
        while start < end:
            SCAN_ARG.pack_into(
                arg, 0, SCAN_ARG.size, flags, start, end, 0, self._vec_at, room, 0, inverted, mask, anyof, returns
            )
            found = fcntl.ioctl(self.fd, PAGEMAP_SCAN, arg, True)
            if found:
                words = array("Q")
                words.frombytes(memoryview(vec)[: found * _REGION])
                yield from zip(words[0::3], words[1::3], words[2::3], strict=True)
            walked = int.from_bytes(arg[_WALK_END : _WALK_END + 8], "little")
            if walked <= start:
                return  # the address space is gone: nothing walked, nothing found
            start = walked

    def entries(self, start: int, end: int) -> bytes:
        """The raw entries of [start, end), 8 bytes each. Short, or empty, when the address space is gone."""
        size, offset = (end - start) // PAGE * ENTRY, start // PAGE * ENTRY
        chunks: list[bytes] = []
        while size > 0:
            chunk = os.pread(self.fd, min(size, 1 << 20), offset)
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
            offset += len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _table(test: int) -> bytes:
    """For bytes.translate: 1 where a byte has a bit of ``test``."""
    return bytes(1 if byte & test else 0 for byte in range(256))


_SOFT_DIRTY = _table(SOFT_DIRTY)
_POPULATED = bytes(
    1 if byte & (PRESENT | SWAPPED) and not byte & GUARD else 0 for byte in range(256)
)
_OWN = bytes(
    1 if byte & (PRESENT | SWAPPED) and not byte & (GUARD | FILE) else 0 for byte in range(256)
)
_GUARDED = _table(GUARD)
_SHARED = bytes(
    1 if byte & PRESENT and not byte & (SWAPPED | FILE | GUARD | EXCLUSIVE) else 0 for byte in range(256)
)
_NUMBER = bytes(byte & ~SOFT_DIRTY for byte in range(256))  # bits 48 to 54
_SAME = bytes([1, *[0] * 255])


def populated(entries: bytes) -> bytes:
    """One byte a page, 1: there is a page, in memory or in swap. The zero page is one too: entries do not tell it
    apart."""
    return entries[7::8].translate(_POPULATED)


def anonymous(entries: bytes) -> bytes:
    """One byte a page, 1: a private page, in memory or in swap, that is not the file's."""
    return entries[7::8].translate(_OWN)


def guarded(entries: bytes) -> bytes:
    """One byte a page, 1: a guard (MADV_GUARD_INSTALL). Always 0 before 6.15, where nothing tells them from swapped
    pages."""
    return entries[7::8].translate(_GUARDED)


def soft_dirty(entries: bytes) -> bytes:
    """One byte a page, 1: written, or mapped, since /proc/PID/clear_refs was last written to."""
    return entries[6::8].translate(_SOFT_DIRTY)


def shared(entries: bytes) -> bytes:
    """One byte a page, 1: a private page, in memory, that somebody else has as well."""
    return entries[7::8].translate(_SHARED)


def same_frames(one: bytes, other: bytes) -> int:
    """One byte a page, as a little-endian number: 1 where both are `shared`, and the same frame (bits 0 to 54)."""
    differences = (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")
    apart = int.from_bytes(differences[6::8].translate(_NUMBER), "little")
    for byte in range(6):
        apart |= int.from_bytes(differences[byte::8], "little")
    same = apart.to_bytes(len(one) // ENTRY, "little").translate(_SAME)
    found = int.from_bytes(same, "little")
    return found & int.from_bytes(shared(one), "little") & int.from_bytes(shared(other), "little")

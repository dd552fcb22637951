"""Which pages a shared-memory object has: lseek(2) with SEEK_DATA and SEEK_HOLE through /proc/PID/map_files."""

from __future__ import annotations

import errno
import os

from migrate.engine.kernel.proc import Proc
from migrate.engine.memory.area import Area
from migrate.engine.memory.pageset import PageSet


def object_pages(process: Proc, area: Area) -> PageSet:
    """The pages of a VMA of shared memory that its object holds, in memory or in swap, mapped or not.

    Without the right to follow map_files (see `has_map_files`) all of its pages: reading those that are not there gives
    zeros, and makes the object larger. Empty if there is no such VMA any more.
    """
    found = PageSet()
    try:
        fd = process.open(f"map_files/{area.start:x}-{area.end:x}")
    except PermissionError:
        found.add(area.start, area.end)
        return found
    except FileNotFoundError:
        return found  # unmapped since maps was read: the next reading says so
    try:
        size = os.fstat(fd).st_size
        position, end = area.offset, min(area.offset + area.end - area.start, size)
        while position < end:
            try:
                data = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing behind here
                    break
                raise
            if data >= end:
                break
            position = min(os.lseek(fd, data, os.SEEK_HOLE), end)
            shift = area.start - area.offset
            found.add(data + shift & ~4095, position + shift + 4095 & ~4095)
    finally:
        os.close(fd)
    return found

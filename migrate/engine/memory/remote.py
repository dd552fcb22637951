"""Reads pages of a running task that may take them away meanwhile."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Sequence
from typing import Any

from cffi import FFI

from migrate.engine.kernel.buffers import address_of
from migrate.engine.kernel.proc import Proc
from migrate.engine.memory.pageset import PAGE

_IOV_MAX = 1024  # linux/uio.h, UIO_MAXIOV

_ffi = FFI()
_ffi.cdef(
    "ssize_t process_vm_readv(int pid, uintptr_t local, unsigned long, uintptr_t remote, unsigned long, unsigned long);"
)
_libc: Any = _ffi.dlopen(None)


class ForeignMemory:
    """process_vm_readv(2), and /proc/PID/mem for what the task itself could not read. Close it after use."""

    def __init__(self, process: Proc, gently: bool = False) -> None:
        """``gently``: it has pages that others have too, by fork(2), and so it shall remain: by /proc/PID/mem alone.
        process_vm_readv(2) pins what it reads, and gives the task a copy of such a page before ("mm: support
        GUP-triggered unsharing of anonymous pages", Linux 5.19): what is left is a tree that needs the memory of each
        of its processes in full. Reading takes a third more time so."""
        self._gently = gently
        self._process = process
        self._mem = -1

    def read(self, buffer: memoryview, runs: Sequence[tuple[int, int]], readable: bool = True) -> set[int]:
        """All pages of the runs (address, pages), one behind the other, into a buffer that has the room. Returns the
        indexes of the pages that are not there any more; what the buffer holds in their places means nothing.

        OSError: ESRCH, the task is gone; EPERM.
        """
        if not readable or self._gently:
            return self._read_by_file(buffer, runs)
        missing: set[int] = set()
        base = address_of(buffer)
        rest = list(runs)
        done = 0  # pages
        while rest:
            batch = rest[:_IOV_MAX]
            iov = array("Q", [word for address, pages in batch for word in (address, pages * PAGE)])
            wanted = sum(pages for _, pages in batch)
            local = array("Q", (base + done * PAGE, wanted * PAGE))
            got = _libc.process_vm_readv(self._process.pid, address_of(local), 1, address_of(iov), len(batch), 0)
            if got < 0 and _ffi.errno != errno.EFAULT:
                raise OSError(_ffi.errno, f"process_vm_readv of {self._process.pid}: {os.strerror(_ffi.errno)}")
            pages = max(0, got) // PAGE
            done += pages
            if pages == wanted:
                rest = rest[_IOV_MAX:]
                continue
            # The transfer ends in front of the first page that is not there (mm/process_vm_access.c). A page that the
            # task has mapped PROT_NONE meanwhile is there all the same.
            rest = _after(rest, pages)
            address, count = rest[0]
            if self._read_by_file(buffer[done * PAGE : (done + 1) * PAGE], [(address, 1)]):
                missing.add(done)
            done += 1
            rest[0] = (address + PAGE, count - 1)
            if count == 1:
                del rest[0]
        return missing

    def _read_by_file(self, buffer: memoryview, runs: Sequence[tuple[int, int]]) -> set[int]:
        """By /proc/PID/mem, which minds no protection (proc_pid_mem(5)) and copies page by page."""
        if self._mem < 0:
            self._mem = self._process.open("mem")
        missing: set[int] = set()
        index = 0
        for address, pages in runs:
            at, end = address, address + pages * PAGE
            while at < end:
                try:
                    got = os.preadv(self._mem, [buffer[index * PAGE : index * PAGE + end - at]], at) // PAGE
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    got = 0
                if not got:
                    missing.add(index)
                    got = 1
                index += got
                at += got * PAGE
        return missing

    def close(self) -> None:
        if self._mem >= 0:
            os.close(self._mem)
            self._mem = -1


def _after(runs: list[tuple[int, int]], pages: int) -> list[tuple[int, int]]:
    """What is left of the runs behind so many pages."""
    for index, (address, count) in enumerate(runs):
        if pages < count:
            return [(address + pages * PAGE, count - pages), *runs[index + 1 :]]
        pages -= count
    return []

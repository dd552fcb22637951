"""What this kernel can do, found out by trying; never by its version, because distributions backport.

Each answer is kept: the kernel does not change while we run.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from functools import cache

from migrate.engine.kernel.buffers import address_of
from migrate.engine.kernel.pagemap import Category, Pagemap
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kernel.userfaultfd import CREATE_FLAGS, enable_tracking

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: int) -> int:
    """The result, or the negative errno."""
    result = int(_libc.syscall(ctypes.c_long(NUMBERS[name]), *(ctypes.c_long(arg) for arg in args)))
    return result if result >= 0 else -ctypes.get_errno()


@cache
def has_wp_async() -> bool:
    """userfaultfd with asynchronous write protection, also of unpopulated pages (6.7)."""
    fd = _call("userfaultfd", CREATE_FLAGS)
    if fd < 0:
        if -fd in (errno.ENOSYS, errno.EPERM, errno.EINVAL):  # the last: UFFD_USER_MODE_ONLY is of 5.11
            return False
        raise OSError(-fd, f"userfaultfd: {os.strerror(-fd)}")
    try:
        return enable_tracking(fd)
    finally:
        os.close(fd)


@cache
def _scan(categories: int) -> bool:
    with Proc(os.getpid()) as process, mmap.mmap(-1, 4096) as page:
        start = address_of(memoryview(page)) & ~4095
        pagemap = Pagemap(process, regions=4)
        try:
            list(pagemap.scan(start, start + 4096, anyof=categories, returns=categories))
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return False
            raise
        finally:
            pagemap.close()
    return True


@cache
def has_pagemap_scan() -> bool:
    """ioctl(PAGEMAP_SCAN) (6.7)."""
    return _scan(int(Category.PRESENT))


@cache
def has_page_is_guard() -> bool:
    """PAGEMAP_SCAN tells guard regions apart (PAGE_IS_GUARD, 6.15)."""
    return _scan(int(Category.GUARD))


@cache
def has_soft_dirty() -> bool:
    """Pages remember that they were written to (CONFIG_MEM_SOFT_DIRTY): tried on a page of ours, because the kernel
    takes `4` into clear_refs whether it can or not."""
    with Proc(os.getpid()) as process, mmap.mmap(-1, 2 * 4096) as pages:
        pages[0] = pages[4096] = 1
        start = address_of(memoryview(pages))
        pagemap = Pagemap(process, regions=4)
        try:
            fd = process.open("clear_refs", os.O_WRONLY)
            try:
                os.write(fd, b"4")
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return False
                raise
            finally:
                os.close(fd)
            pages[0] = 2
            entries = pagemap.entries(start, start + 2 * 4096)
        finally:
            pagemap.close()
    return bool(entries[6] & 0x80) and not entries[14] & 0x80


@cache
def has_frame_numbers() -> bool:
    """/proc/PID/pagemap shows us which frame of physical memory a page is: CAP_SYS_ADMIN (proc_pid_pagemap(5))."""
    with Proc(os.getpid()) as process, mmap.mmap(-1, 4096) as page:
        page[0] = 1
        start = address_of(memoryview(page))
        pagemap = Pagemap(process, regions=1)
        try:
            return any(pagemap.entries(start, start + 4096)[:6])
        finally:
            pagemap.close()


@cache
def has_guard_regions() -> bool:
    """madvise(MADV_GUARD_INSTALL) (6.13)."""
    with mmap.mmap(-1, 4096) as page:
        result = _call("madvise", address_of(memoryview(page)), 4096, 102)
        if result == 0:
            _call("madvise", address_of(memoryview(page)), 4096, 103)
    return result == 0


@cache
def has_forced_reads() -> bool:
    """/proc/PID/mem reads what the task itself cannot, whoever reads it. Since 6.12 a kernel can be built, or booted,
    to do so for the task's tracer only ("proc: add config & param to block forcing mem writes"; reads are, too)."""
    with Proc(os.getpid()) as process, mmap.mmap(-1, 4096) as page:
        page[0] = 1
        start = address_of(memoryview(page))
        fd = process.open("mem")
        _call("mprotect", start, 4096, 0)  # PROT_NONE
        try:
            return os.pread(fd, 1, start) == b"\1"
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise
        finally:
            _call("mprotect", start, 4096, mmap.PROT_READ | mmap.PROT_WRITE)
            os.close(fd)


@cache
def has_map_files() -> bool:
    """The links of /proc/PID/map_files may be followed: CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the first user
    namespace (proc_pid_map_files(5))."""
    with Proc(os.getpid()) as process:
        for name in process.names("map_files"):
            try:
                os.close(process.open(f"map_files/{name}"))
            except PermissionError:
                return False
            return True
    return False

"""Dirty pages by asynchronous write protection: a userfaultfd of the task's, and PAGEMAP_SCAN (both 6.7).

Measured on 6.18, and what the code rests on:

- any private memory can be registered, that of files and read-only VMAs too ("mm/userfaultfd: allow any memory type
with WP_ASYNC"); a shared mapping of a file opened for reading cannot (EPERM), MAP_DROPPABLE neither; - registering
again what is registered costs nothing, and a range may hold holes: so whole ranges are registered before each scan,
and no book is kept of VMAs; - a VMA that is new, was moved by mremap(2) or was mapped anew at the same address is
not registered; PAGEMAP_SCAN with PM_SCAN_WP_MATCHING passes it over and, asked for the opposite of
PAGE_IS_WPALLOWED, shows it: everything in it counts as written; - MADV_DONTNEED of a protected page leaves nothing
in anonymous memory, but in that of files and shared memory a marker, which shows as SWAPPED and not WRITTEN; - while
the userfaultfd lives, memory that the task maps next to a registered VMA is not merged with it until the next scan
registers it. Closing it (`close`) puts everything back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from migrate.engine.kernel.fdcalls import pidfd_getfd
from migrate.engine.kernel.pagemap import PM_SCAN_WP_MATCHING, Category, Pagemap
from migrate.engine.kernel.probes import has_page_is_guard
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kernel.userfaultfd import CREATE_FLAGS, enable_tracking, register
from migrate.engine.memory.area import Area, Content, Ranges, of, sort_out
from migrate.engine.memory.digests import DigestTracker
from migrate.engine.memory.pageset import PageSet
from migrate.engine.memory.shmem import object_pages
from migrate.engine.memory.tracker import Scan, Tracker
from migrate.errors import Failed

RemoteSyscall = Callable[..., int]
"""remote_syscall(number, *arguments) -> result or negative errno, made by the task itself."""

_THERE = Category.PRESENT | Category.SWAPPED
_PRIVATE = (Content.ANONYMOUS, Content.PRIVATE_FILE)
_FOREIGN = (errno.EPERM, errno.EBUSY, errno.EINVAL)  # a VMA that cannot be registered


class WriteProtectTracker(Tracker):
    name = "PAGEMAP_SCAN"
    stop_to_scan = False

    def __init__(self, process: Proc, uffd: int) -> None:
        """``uffd``: made in the task, held here, after `enable_tracking`; closed by `close`."""
        self._process = process
        self._uffd = uffd
        self._pagemap = Pagemap(process)
        self._others = DigestTracker(process)
        self._returns = int(_THERE | Category.WRITTEN | Category.FILE | Category.PFNZERO)
        if has_page_is_guard():
            self._returns |= Category.GUARD
        self.untracked: dict[tuple[int, int], int] = {}  # ranges that cannot be registered -> errno; always written

    @classmethod
    def create(cls, process: Proc, pidfd: int, remote_syscall: RemoteSyscall) -> WriteProtectTracker:
        """Have the task make a userfaultfd, take it out and close it there: two system calls in the task.

        Failed: the kernel or a seccomp filter does not let the task, or WP_ASYNC is missing.
        """
        number = remote_syscall(NUMBERS["userfaultfd"], CREATE_FLAGS)
        if number < 0:
            raise Failed(f"userfaultfd in {process.pid}: {os.strerror(-number)}")
        try:
            uffd = pidfd_getfd(pidfd, number)
        finally:
            closed = remote_syscall(NUMBERS["close"], number)
        if closed < 0:
            os.close(uffd)
            raise Failed(f"close of our userfaultfd in {process.pid}: {os.strerror(-closed)}")
        try:
            if not enable_tracking(uffd):
                raise Failed("userfaultfd of this kernel has no UFFD_FEATURE_WP_ASYNC")
            return cls(process, uffd)
        except BaseException:
            os.close(uffd)
            raise

    def scan(self, areas: Sequence[Area], protect: bool = True) -> Scan:
        tracked, compared = sort_out(areas)
        found = self._others.compare(compared)
        private = [area for area in tracked if area.content is not Content.SHARED]
        shared = [area for area in tracked if area.content is Content.SHARED]
        ranges = _spans(areas)
        # First those that are not registered, then register, then the others: so what is mapped between the steps shows
        # in one of them.
        for start, end in ranges:
            self._look_unregistered(start, end, found)
        if protect:
            self.untracked.clear()
            for start, end in ranges:
                self._register(start, end, tracked)
        swapped = PageSet()
        for start, end in ranges:
            self._look(start, end, protect, found, swapped)
        # Swapped and protected, in a private mapping of a file: perhaps a page of the task's own, perhaps the marker of
        # one that was thrown away. Reading it gives the right contents in both cases.
        found.written |= swapped.clip(of(Content.PRIVATE_FILE, private))
        for area in shared:
            self._look_shared(area, protect, found)
        return found

    def _look_unregistered(self, start: int, end: int, found: Scan) -> None:
        excluded = int(Category.WPALLOWED | Category.FILE)
        for low, high, categories in self._pagemap.scan(
            start, end, inverted=excluded, mask=excluded, anyof=int(_THERE), returns=self._returns
        ):
            if categories & Category.GUARD:
                found.guard.add(low, high)
            elif not categories & Category.PFNZERO:
                found.populated.add(low, high)
                found.written.add(low, high)

    def _look(self, start: int, end: int, protect: bool, found: Scan, swapped: PageSet) -> None:
        for low, high, categories in self._pagemap.scan(
            start,
            end,
            flags=PM_SCAN_WP_MATCHING if protect else 0,
            inverted=int(Category.FILE),
            mask=int(Category.WPALLOWED | Category.FILE),
            anyof=int(_THERE),
            returns=self._returns,
        ):
            if categories & Category.GUARD:
                found.guard.add(low, high)
            elif not categories & Category.PFNZERO:
                found.populated.add(low, high)
                if categories & Category.WRITTEN:
                    found.written.add(low, high)
                elif categories & Category.SWAPPED:
                    swapped.add(low, high)

    def _look_shared(self, area: Area, protect: bool, found: Scan) -> None:
        """The pages of the object; clean are those that are protected in the page tables, or have a marker there.
        One that is in neither way may have been written to and thrown out of the page tables."""
        if protect:
            self._register(area.start, area.end, [area])
        clean = PageSet()
        for low, high, categories in self._pagemap.scan(
            area.start,
            area.end,
            flags=PM_SCAN_WP_MATCHING if protect else 0,
            mask=int(Category.WPALLOWED),
            anyof=int(_THERE),
            returns=self._returns,
        ):
            if categories & Category.GUARD:
                found.guard.add(low, high)
            elif not categories & Category.WRITTEN:
                clean.add(low, high)
        try:
            there = object_pages(self._process, area)
        except FileNotFoundError:
            return  # unmapped since maps was read; the next scan knows
        found.populated |= there
        found.written |= there - clean

    def _register(self, start: int, end: int, within: Sequence[Area]) -> None:
        """All at once; one VMA that cannot be registered spoils it for all, so then one by one."""
        try:
            register(self._uffd, start, end)
            return
        except OSError as error:
            if error.errno not in _FOREIGN:
                raise
        for area in within:
            if start <= area.start and area.end <= end:
                try:
                    register(self._uffd, area.start, area.end)
                except OSError as error:
                    if error.errno not in _FOREIGN or error.errno is None:
                        raise
                    self.untracked[area.start, area.end] = error.errno

    def sent(self, address: int, contents: memoryview) -> None:
        self._others.sent(address, contents)

    def close(self) -> None:
        """Unregisters everything: the last descriptor of the userfaultfd goes (userfaultfd_release(),
        fs/userfaultfd.c)."""
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1
        self._pagemap.close()
        self._others.close()


def _spans(areas: Sequence[Area]) -> Ranges:
    """The fewest address ranges that hold all private memory and nothing else: they reach over holes."""
    found: Ranges = []
    interrupted = True
    for area in areas:
        if area.content not in _PRIVATE:
            interrupted = True
        elif interrupted:
            found.append((area.start, area.end))
            interrupted = False
        else:
            found[-1] = (found[-1][0], area.end)
    return found

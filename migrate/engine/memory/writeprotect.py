"""Dirty pages by asynchronous write protection: a userfaultfd of the task's, and PAGEMAP_SCAN (both 6.7).

Measured on 6.18, and what the code rests on:

- Any private memory can be registered, that of files and read-only VMAs too (vma_can_userfault(),
  include/linux/userfaultfd_k.h); a shared mapping of a file opened for reading cannot (EPERM), MAP_DROPPABLE neither.
- Registering again what is registered costs nothing, and a range may hold holes: so whole ranges are registered, and no
  book is kept of VMAs.
- A range that ends within a VMA cuts it in two, and an mremap(2) of it fails with EFAULT from then on. So the task must
  stand still from when the areas are read until they are registered: whenever they are not those of the last time.
- A VMA that is new, was moved by mremap(2) or was mapped anew at the same address is not registered. PAGEMAP_SCAN with
  PM_SCAN_WP_MATCHING passes it over and, asked for the opposite of PAGE_IS_WPALLOWED, shows it: everything in it counts
  as written.
- MADV_DONTNEED of a protected page leaves nothing in anonymous memory, but in that of files and shared memory a marker,
  which shows as SWAPPED and not WRITTEN.
- While the userfaultfd lives, memory that the task maps next to a registered VMA is not merged with it until the next
  scan registers it. Closing it (`close`) puts everything back.
- So an mremap(2) of two areas that were mapped one by one, and are one VMA for a task that is not tracked, may fail
  with EFAULT between two scans; and one of several VMAs, which 6.17 allows, always (vma_multi_allowed(), mm/mremap.c).
  malloc(3) is not concerned: it moves what it has mapped in one piece.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from migrate.engine.kernel.fdcalls import pidfd_getfd
from migrate.engine.kernel.pagemap import PM_SCAN_WP_MATCHING, Category, Pagemap
from migrate.engine.kernel.probes import has_page_is_guard
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kernel.userfaultfd import CREATE_FLAGS, enable_tracking, register
from migrate.engine.memory.area import Area, Content, Ranges, sort_out
from migrate.engine.memory.digests import DigestTracker
from migrate.engine.memory.pageset import PageSet
from migrate.engine.memory.shmem import object_pages
from migrate.engine.memory.tracker import Scan, Tracker
from migrate.errors import Failed

RemoteSyscall = Callable[..., int]
"""remote_syscall(number, *arguments) -> result or negative errno, made by the task itself."""

_THERE = Category.PRESENT | Category.SWAPPED
_EMPTY = int(Category.PFNZERO | Category.GUARD)  # plain numbers: an enum's & costs 3 µs, and there are thousands
_WRITTEN, _SWAPPED = int(Category.WRITTEN), int(Category.SWAPPED)
_TRACKED = int(Category.WRITTEN | Category.WPALLOWED)
_LARGE = 1 << 20  # bytes of anonymous memory that are worth a walk of their own
_LONG = 1 << 24  # bytes of a hole that is not written down page by page
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
        self._returns = int(_THERE | Category.WPALLOWED | Category.WRITTEN | Category.PFNZERO)
        if has_page_is_guard():
            self._returns |= Category.GUARD
        self._registered: list[Area] = []
        self._new = False  # something in them was not registered at the last scan
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

    def stops(self, areas: Sequence[Area]) -> bool:
        shared = [area for area in areas if area.content is Content.SHARED]  # may have to be compared
        return self._unregistered(areas) or self._others.stops(shared)

    def _unregistered(self, areas: Sequence[Area]) -> bool:
        return self._new or areas != self._registered

    def scan(self, areas: Sequence[Area], held: PageSet, protect: bool = True) -> Scan:
        tracked, compared = sort_out(areas)
        found = Scan()
        spans = _spans(areas)
        # First those that are not registered, then register, then the others: so what is mapped between the steps shows
        # in one of them.
        for span in spans:
            self._look_unregistered(span, held, found)
        if protect:
            if self._unregistered(areas):
                self._register_all(areas, spans, tracked)
                self._new = False
            else:
                self._new = self._has_new(tracked, found.written)
        for span in spans:
            if span.files:
                self._look_files(span, held, protect, found)
            else:
                self._look(span, held, protect, found)
        for area in tracked:
            if area.content is Content.SHARED:
                self._look_shared(area, held, protect, found)
        others = self._others.compare(compared, held)
        found.written |= others.written
        found.gone |= others.gone
        return found

    def _has_new(self, tracked: Sequence[Area], unregistered: PageSet) -> bool:
        """Whether anything but what cannot be registered should be, though its place was registered once."""
        if unregistered - unregistered.clip(sorted(self.untracked)):
            return True
        seen = Scan()
        for area in tracked:
            if area.content is Content.SHARED and (area.start, area.end) not in self.untracked:
                self._look_unregistered(_Span(area.start, area.end, []), PageSet(), seen)
        return bool(seen.written)

    def _look_unregistered(self, span: _Span, held: PageSet, found: Scan) -> None:
        excluded = int(Category.WPALLOWED | (Category.FILE if span.files else 0))
        empty = Hollow()
        for low, high, categories in self._pagemap.scan(
            span.start, span.end, inverted=excluded, mask=excluded, anyof=int(_THERE), returns=self._returns
        ):
            if categories & _EMPTY:
                empty.add(low, high)
            else:
                found.written.add(low, high)
        found.gone |= empty.among(held)

    def _look(self, span: _Span, held: PageSet, protect: bool, found: Scan) -> None:
        """Anonymous memory. What was written, then what is not there: two walks that report little cost a fraction of
        one that reports every page (1 GiB: 0.8 ms and 0.4 ms, against 3.4 ms; 12 ms if it asks for FILE too)."""
        empty = Hollow()
        for low, high, categories in self._pagemap.scan(
            span.start,
            span.end,
            flags=PM_SCAN_WP_MATCHING if protect else 0,
            mask=int(Category.WPALLOWED | Category.WRITTEN),
            anyof=int(_THERE),
            returns=self._returns,
        ):
            if categories & _EMPTY:
                empty.add(low, high)
            else:
                found.written.add(low, high)
        found.gone |= empty.among(held)
        if held:
            empty = Hollow()
            for low, high, _ in self._pagemap.scan(span.start, span.end, inverted=int(_THERE), mask=int(_THERE)):
                empty.add(low, high)
            found.gone |= empty.among(held)

    def _look_files(self, span: _Span, held: PageSet, protect: bool, found: Scan) -> None:
        """Private mappings of files, and the small anonymous ones between them. A page of the task's own that was
        thrown away may be there again, as the file's and protected: so everything has to be listed."""
        there, swapped = PageSet(), PageSet()
        for low, high, categories in self._pagemap.scan(
            span.start,
            span.end,
            flags=PM_SCAN_WP_MATCHING if protect else 0,
            inverted=int(Category.FILE),
            mask=int(Category.FILE),
            anyof=int(_THERE),
            returns=self._returns,
        ):
            if not categories & _EMPTY:
                there.add(low, high)
                if categories & _TRACKED == _TRACKED:
                    found.written.add(low, high)
                elif categories & _SWAPPED:
                    swapped.add(low, high)
        # Swapped and protected, in a private mapping of a file: perhaps a page of the task's own, perhaps the marker of
        # one that was thrown away. Reading it gives the right contents in both cases.
        found.written |= swapped.clip(span.files)
        # Those that are not registered were passed over here; they are in `written`.
        found.gone |= held.clip([(span.start, span.end)]) - there - found.written

    def _look_shared(self, area: Area, held: PageSet, protect: bool, found: Scan) -> None:
        """The pages of the object; clean are those that are protected in the page tables, or have a marker there. One
        that is in neither way may have been written to and thrown out of the page tables."""
        clean = PageSet()
        for low, high, categories in self._pagemap.scan(
            area.start,
            area.end,
            flags=PM_SCAN_WP_MATCHING if protect else 0,
            mask=int(Category.WPALLOWED),
            anyof=int(_THERE),
            returns=self._returns,
        ):
            if not categories & _WRITTEN:
                clean.add(low, high)
        there = object_pages(self._process, area)
        found.written |= there - clean
        found.gone |= held.clip([(area.start, area.end)]) - there

    def _register_all(self, areas: Sequence[Area], spans: Sequence[_Span], tracked: Sequence[Area]) -> None:
        self.untracked.clear()
        for span in spans:
            self._register(span.start, span.end, tracked)
        for area in tracked:
            if area.content is Content.SHARED:
                self._register(area.start, area.end, [area])
        self._registered = list(areas)

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

    @property
    def compares(self) -> bool:
        return self._others.compares

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


class _Span(NamedTuple):
    """Private memory to walk in one go; it may reach over holes."""

    start: int
    end: int
    files: Ranges  # private mappings of files in it; none: all of it is anonymous


def _spans(areas: Sequence[Area]) -> list[_Span]:
    """As few as possible. Telling the file's pages from the task's is dear (a look at each struct page), so large
    anonymous memory is not walked together with files."""
    found: list[_Span] = []
    interrupted = True
    for area in areas:
        if area.content not in _PRIVATE:
            interrupted = True
            continue
        file = area.content is Content.PRIVATE_FILE
        files = [(area.start, area.end)] if file else []
        large = not file and area.end - area.start >= _LARGE
        last = found[-1] if found else None
        if last is None or interrupted or (file and not last.files) or (large and last.files):
            found.append(_Span(area.start, area.end, files))
        else:
            last.files.extend(files)
            found[-1] = _Span(last.start, area.end, last.files)
        interrupted = False
    return found


class Hollow:
    """Ranges without pages: millions of pages long, or a few. Sorted, as the kernel walks."""

    def __init__(self) -> None:
        self._long: Ranges = []
        self._short = PageSet()

    def add(self, start: int, end: int) -> None:
        if end - start > _LONG:
            self._long.append((start, end))
        else:
            self._short.add(start, end)

    def among(self, pages: PageSet) -> PageSet:
        return (pages & self._short) | pages.clip(self._long)

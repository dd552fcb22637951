"""A process whose memory does what a test says, and a mirror of it that is kept by trackers, planner and pump alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import lz4.block

from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.kernel.probes import has_forced_reads
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.memory.area import Area, Content, areas
from migrate.engine.memory.codec import Compress, Compressor
from migrate.engine.memory.pageset import PAGE
from migrate.engine.memory.planner import Erase, Plan, RoundPlanner
from migrate.engine.memory.pump import LZ4, PageFrame, PagePump
from migrate.engine.memory.remote import ForeignMemory
from migrate.engine.memory.tracker import Scan, Tracker
from migrate.engine.tracee.tree import Tracee
from tests.kernel.tracees import Victim

PRIVATE, SHARED, FIXED, ANONYMOUS, NORESERVE = 2, 1, 0x10, 0x20, 0x4000
NONE, R, RW = 0, 1, 3
DONTNEED, REMOVE, HUGEPAGE, GUARD_INSTALL, GUARD_REMOVE = 4, 9, 14, 102, 103
MAYMOVE, MREMAP_FIXED = 1, 2


class Puppet(Victim):
    """Started with `running`-like care: close it."""

    def __init__(self, binary: str) -> None:
        super().__init__(binary)
        self.ready()
        self.proc = Proc(self.pid)
        while not self.proc.text("syscall").startswith("0 0x0 "):
            pass
        self.pidfd = os.pidfd_open(self.pid)

    def close(self) -> None:
        os.close(self.pidfd)
        self.proc.close()
        super().close()

    def __enter__(self) -> Puppet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def tell(self, *words: object) -> int:
        self.input.write(" ".join(map(str, words)) + "\n")
        self.input.flush()
        result = int(self.out.readline())
        # It has answered, and still goes back to its read(2) of the next line: until then its stack changes.
        while not self.proc.text("syscall").startswith("0 0x0 "):
            pass
        return result

    def syscall(self, number: int, *arguments: int) -> int:
        return self.tell("s", number, *arguments)

    def call(self, name: str, *arguments: int) -> int:
        result = self.syscall(NUMBERS[name], *arguments)
        assert result >= 0, f"{name}{arguments}: {os.strerror(-result)}"
        return result

    def map(self, pages: int, flags: int = PRIVATE | ANONYMOUS, prot: int = RW, fd: int = -1, at: int = 0) -> int:
        return self.call("mmap", at, pages * PAGE, prot, flags, fd & (1 << 64) - 1, 0)

    def fill(self, address: int, value: int, size: int = PAGE) -> None:
        self.tell("f", address, size, value)

    def look(self, address: int) -> int:
        return self.tell("p", address)

    def madvise(self, address: int, pages: int, advice: int) -> None:
        self.call("madvise", address, pages * PAGE, advice)

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """The name is handed over in a page of its own."""
        page = self.map(1)
        self.proc_write(page, path.encode() + b"\0")
        fd = self.call("openat", (1 << 64) - 100, page, flags, 0)
        self.call("munmap", page, PAGE)
        return fd

    def memfd(self, pages: int) -> int:
        page = self.map(1)
        self.proc_write(page, b"kit\0")
        fd = self.call("memfd_create", page, 0)
        self.call("munmap", page, PAGE)
        self.call("ftruncate", fd, pages * PAGE)
        return fd

    def proc_write(self, address: int, content: bytes) -> None:
        fd = self.proc.open("mem", os.O_RDWR)
        try:
            os.pwrite(fd, content, address)
        finally:
            os.close(fd)

    def mappings(self) -> list[Mapping]:
        return maps(self.proc.text("maps"))

    def areas(self) -> list[Area]:
        return areas(self.mappings())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stopped and traced, where the kernel wants that of those who read what the task itself cannot."""
        if has_forced_reads():
            yield
            return
        with Tracee(self.pid) as tracee:
            tracee.stop()
            yield

    def descriptors(self) -> int:
        return len(self.proc.names("fd"))


class Mirror:
    """A destination in a dict, and a source side that uses nothing but what a migration uses."""

    def __init__(self, puppet: Puppet, tracker: Tracker, compress: Compress = Compress.NONE) -> None:
        self.puppet = puppet
        self.tracker = tracker
        self.planner = RoundPlanner()
        self.pump = PagePump(puppet.proc, self.planner, tracker, Compressor(compress), puppet.stopped)
        self.pages: dict[int, bytes] = {}
        self.before: list[Mapping] = []
        self.scan = Scan()
        self.plan = Plan()

    def round(
        self,
        protect: bool = True,
        meanwhile: Callable[[], None] = lambda: None,
        before: Callable[[], None] = lambda: None,
    ) -> int:
        """Pages with contents that were sent. ``before``: between reading maps and the scan, unless the tracker has the
        task stopped by then; ``meanwhile``: between the scan and reading the memory."""
        if self.tracker.stop_to_scan:
            before()
        mappings = self.puppet.mappings()
        self._lay_out(mappings)
        here = areas(mappings)
        if not self.tracker.stop_to_scan:
            before()
        with self.puppet.stopped() if self.tracker.stops(here) else nullcontext():
            self.scan = self.tracker.scan(here, self.planner.held, protect)
        meanwhile()
        self.plan = self.planner.plan(self.scan, here)
        sent = self.pump.stats.sent
        for frame in self.pump.frames(self.plan, here):
            self._apply(frame)
        return self.pump.stats.sent - sent

    def _lay_out(self, mappings: list[Mapping]) -> None:
        """The destination maps what the source maps; what differs in more than protection and extent is mapped anew."""
        there = {}
        for mapping in self.before:
            for page in range(mapping.start, min(mapping.end, mapping.start + (1 << 30)), PAGE):
                there[page] = self._identity(mapping, page)
        for mapping in mappings:
            for page in range(mapping.start, min(mapping.end, mapping.start + (1 << 30)), PAGE):
                old = there.pop(page, None)
                if old is not None and old != self._identity(mapping, page):
                    self.pages.pop(page, None)
                    self.planner.remapped(page, page + PAGE)
        for page in there:
            self.pages.pop(page, None)
        self.before = mappings

    @staticmethod
    def _identity(mapping: Mapping, page: int) -> tuple[object, ...]:
        return mapping.shared, mapping.inode, mapping.inode and mapping.offset + page - mapping.start

    def _apply(self, frame: PageFrame) -> None:
        flags, count = struct.unpack_from("<II", frame.meta)
        runs = list(struct.iter_unpack("<QII", frame.meta[8:]))
        assert len(runs) == count
        assert len(frame.blob) <= 256 * PAGE
        assert flags == frame.flags
        blob = bytes(frame.blob)
        if flags & LZ4:
            blob = lz4.block.decompress(blob, uncompressed_size=frame.pages * PAGE)
        at = 0
        for address, pages, how in runs:
            for page in range(address, address + pages * PAGE, PAGE):
                if how:
                    assert page in self.pages, f"{Erase(how).name} of {page:#x}, which the destination has not got"
                    del self.pages[page]
                else:
                    self.pages[page] = blob[at : at + PAGE]
                    at += PAGE
        assert at == len(blob) == frame.pages * PAGE

    def check(self) -> int:
        """Every page of the task against the mirror; AssertionError names the first that differs. Pages compared."""
        memory = ForeignMemory(self.puppet.proc)
        compared = 0
        doubles = set()
        try:
            for mapping, area in zip(mappings := self.puppet.mappings(), areas(mappings), strict=True):
                if area.content is Content.NOTHING or mapping.size > 1 << 30:
                    continue
                if area.content is Content.SHARED:
                    # Of what is mapped twice the destination needs the contents at one of its places.
                    if (area.object, area.offset, mapping.size) in doubles:
                        continue
                    doubles.add((area.object, area.offset, mapping.size))
                base = self._base(mapping)
                buffer = memoryview(bytearray(mapping.size))
                with nullcontext() if area.readable else self.puppet.stopped():
                    missing = memory.read(buffer, [(mapping.start, mapping.pages)], area.readable)
                for index in range(mapping.pages):
                    page = mapping.start + index * PAGE
                    here = self.pages.get(page, base[index * PAGE : (index + 1) * PAGE])
                    if index in missing:
                        assert page not in self.pages, f"{page:#x} is a hole in {mapping}, and was sent"
                    else:
                        assert buffer[index * PAGE : (index + 1) * PAGE] == here, f"page {index} of {mapping}"
                        compared += 1
        finally:
            memory.close()
        return compared

    def _base(self, mapping: Mapping) -> bytes:
        """What is there if nothing was ever sent."""
        if not mapping.file or mapping.shared:
            return bytes(mapping.size)
        fd = self.puppet.proc.open(f"map_files/{mapping.start:x}-{mapping.end:x}")
        try:
            return os.pread(fd, mapping.size, mapping.offset).ljust(mapping.size, b"\0")
        finally:
            os.close(fd)

    def close(self) -> None:
        self.pump.close()
        self.tracker.close()


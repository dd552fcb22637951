"""A restoree on this machine, without a connection: an overseer of our own, programs to run in what it creates."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from agents.elf import elf
from agents.overseer import Overseer, RestorerDied
from migrate.engine import lineage, vdso
from migrate.engine.births import create
from migrate.engine.kernel.maps import maps
from migrate.engine.kin import Kin
from migrate.engine.memory.layout import PAGE, choose_hole, park, ranges
from migrate.engine.overseer import Channels, Hole, hole_size
from migrate.engine.program import Program, Results
from migrate.engine.program.listing import describe_failure
from migrate.pie import blob

CONTROL, DATA = 900, 901  # the restorer's descriptors in the restoree
_FRAME_PAGES = 16  # what fits the socket, so that one thread can do both ends


def unused_pid() -> int:
    """A number that was just given back."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


class Restoree:
    """Created in a hole of the given address space; ended by leaving the context. ``used``: the VMAs of the task that
    it is to become; ``children``: how many restorees it begets, with ``journal`` of the migration."""

    def __init__(self, used: Iterable[tuple[int, int]], journal: int | None = None, children: int = 0) -> None:
        self._feed, data = socket.socketpair()
        code = os.memfd_create("restorer", os.MFD_CLOEXEC)
        try:
            os.write(code, elf(blob()))
            self._overseer = Overseer.start(code, ["restorer"], 1 + children, False, data.fileno(), journal)
        finally:
            os.close(code)
            self._data = data
        self.overseer_pid = self._overseer.pid
        self.overseer_maps = maps(self._overseer.maps())
        self.hole: Hole = choose_hole([*used, *ranges(self.overseer_maps)], hole_size(0))
        self.pid = unused_pid()
        self.vdso = vdso.areas(self.overseer_maps)
        channels = Channels(CONTROL, DATA)
        self._run(0, create(self.pid, self.hole, channels))
        self.people = [self.pid, *(unused_pid() for _ in range(children))]
        tree = [Kin(pid, -1 if pid == self.pid else 0) for pid in self.people]
        slots = range(1, len(tree) + 1)
        nursery = lineage.Nursery(
            self.hole, [self.hole] * len(tree), [channels] * len(tree), self._overseer.pid, slots, [()] * len(tree)
        )
        for slot, program in lineage.creation(tree, nursery):
            self._run(slot, program)

    def run(self, program: Program, position: int = 0) -> Results:
        """Run it in the restoree, or in one of its children; AssertionError with what failed, in words."""
        return self._run(1 + position, program)

    def oversee(self, program: Program) -> Results:
        """Run it in the overseer."""
        return self._run(0, program)

    def release(self, program: bytes) -> None:
        """Run the commit, in which the overseer may die."""
        try:
            self._overseer.release(program)
        except RestorerDied:
            return

    def try_run(self, program: Program) -> str:
        """What failed, in words, or nothing."""
        linked = program.link()
        _, failed, result, _ = self._overseer.run(1, linked.image, False)
        return "" if failed < 0 else describe_failure(linked, failed, result)

    def _run(self, slot: int, program: Program) -> Results:
        linked = program.link()
        _, failed, result, image = self._overseer.run(slot, linked.image, True)
        assert failed < 0, describe_failure(linked, failed, result)
        return linked.results(image)

    def place(self, address: int, content: bytes) -> None:
        """Contents of pages, the way they travel."""
        for at in range(0, len(content), _FRAME_PAGES * PAGE):
            part = content[at : at + _FRAME_PAGES * PAGE]
            self._feed.sendall(part)
            meta = struct.pack("<II", 0, 1) + struct.pack("<QII", address + at, len(part) // PAGE, 0)
            failed, result = self._overseer.place(1, meta, len(part))
            assert failed < 0, f"{address + at:x}: {os.strerror(-result)}"

    def drop(self, address: int) -> None:
        """A page that the task no longer has."""
        meta = struct.pack("<II", 0, 1) + struct.pack("<QII", address, 1, 1)
        failed, result = self._overseer.place(1, meta, 0)
        assert failed < 0, f"{address:x}: {os.strerror(-result)}"

    def peek(self, address: int, size: int) -> bytes | None:
        """What stands there; None where nothing may be read (even from outside)."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            try:
                return memory.read(size)
            except OSError:
                return None

    def own(self, address: int) -> bool:
        """Whether an address is the restorer's."""
        return self.hole.start <= address < park(self.hole)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.people:
            with suppress(ProcessLookupError):  # a test has seen to its end, and reaped it
                os.kill(pid, signal.SIGKILL)
        self._overseer.kill()
        for pid in self.people:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)  # an orphan now, and orphans come to the tests
        self._feed.close()
        self._data.close()

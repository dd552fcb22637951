"""The parasite: the interpreter, put into a stopped process for as long as a few programs take.

    with Injection(tracee, blob()) as parasite:
        results = parasite.run({tid: program})

What is put back, whatever happens: registers, signal mask and interrupted system calls of every thread, and the memory
map. What is lost: an aborted restartable sequence (as at any preemption); 4 KiB more of private memory (see `pad`);
when we are killed in the middle, the mapping stays in the process, which otherwise runs on unharmed.

A program that is injected must not WAIT for another thread: when we are killed, that one may not have set out.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import TracebackType

from migrate.engine.kernel.maps import PAGE
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.program import Linked, Program, Results
from migrate.engine.tracee.area import HEADER_SIZE, header
from migrate.engine.tracee.detour import ProcessEnded, Traveller, Trip, look, travellers
from migrate.engine.tracee.instep import Leg, Steps, alone
from migrate.engine.tracee.memory import RemoteAddress
from migrate.engine.tracee.stub import ALIGN, whole_program
from migrate.engine.tracee.together import Seen
from migrate.engine.tracee.tree import Tracee
from migrate.errors import Failed
from migrate.pie import RUN

_STACK = 8192  # bytes; the interpreter needs a few hundred
_DEFAULT_ROOM = 64 << 10  # bytes
_TIMEOUT = 10.0  # seconds
_MAP_32BIT = 0x40  # mmap(2)


class Injection:
    """The context: maps an area on the way in, unmaps everything on the way out. The tracee must be stopped
    throughout."""

    def __init__(self, tracee: Tracee, blob: bytes, size: int = _DEFAULT_ROOM) -> None:
        """``size``: bytes of room for programs; when they need more, more is mapped."""
        self.tracee = tracee
        self._blob = blob
        self._size = size
        self._areas: list[tuple[RemoteAddress, int]] = []
        self.code = RemoteAddress(0)  # where the blob is

    def __enter__(self) -> Parasite:
        return alone(self.entering())

    def entering(self) -> Steps[Parasite]:
        """The way in, in step with others."""
        base = yield from self._map(len(self._blob) + ALIGN + self._size)
        self.code = RemoteAddress(base + HEADER_SIZE)
        try:
            self.tracee.memory.write(self.code, self._blob)
        except BaseException:
            self._unmap()
            raise
        return Parasite(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._unmap()
        except ProcessEnded:
            if error is None:  # else that one tells more
                raise

    def room(self, size: int) -> Steps[RemoteAddress]:
        """``size`` bytes to use for a run; given back all at once when the next one begins."""
        base, length = self._areas[-1]
        start = HEADER_SIZE + (_up(len(self._blob), ALIGN) if len(self._areas) == 1 else 0)
        if start + size > length:
            base, start = (yield from self._map(size)), HEADER_SIZE
        return RemoteAddress(base + start)

    def _map(self, room: int) -> Steps[RemoteAddress]:
        size = _up(HEADER_SIZE + room, PAGE)
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if self.tracee.compat:
            flags |= _MAP_32BIT  # it has no others, and its own calls are told no others
        base = yield from self._call("mmap", 0, size, protection, flags, -1, 0)
        if base < 0:
            what = f"mapping {size} bytes of executable memory in process {self.tracee.pid}"
            raise Failed(f"{what}: {os.strerror(-base)}")
        self._areas.append((RemoteAddress(base), size))
        self.tracee.memory.write(RemoteAddress(base), header(size))
        return RemoteAddress(base)

    def _unmap(self) -> None:
        while self._areas:
            base, size = self._areas[-1]
            result = alone(self._call("munmap", base, size))
            if result < 0:
                raise Failed(f"unmapping {base:#x} in process {self.tracee.pid}: {os.strerror(-result)}")
            self._areas.pop()

    def _call(self, name: str, *args: int) -> Steps[int]:
        return self.tracee.calling(self.tracee.tids[0], NUMBERS[name], *args)


class Parasite:
    """What an `Injection` gives: the means to run programs in stopped threads."""

    def __init__(self, injection: Injection) -> None:
        self._injection = injection
        self._tracee = injection.tracee
        self.needed = 0  # bytes of room, at most, for the programs of a run

    @property
    def code(self) -> RemoteAddress:
        """Where the blob is mapped in the task."""
        return self._injection.code

    def run(
        self,
        programs: Mapping[int, Linked | Program],
        seen: Sequence[Seen] = (),
        meanwhile: Callable[[], None] | None = None,
        timeout: float = _TIMEOUT,
    ) -> dict[int, Results]:
        """`running`, with no other process."""
        return alone(self.running(programs, seen, meanwhile, timeout))

    def running(
        self,
        programs: Mapping[int, Linked | Program],
        seen: Sequence[Seen] = (),
        meanwhile: Callable[[], None] | None = None,
        timeout: float = _TIMEOUT,
    ) -> Steps[dict[int, Results]]:
        """Run one program in each of these threads, all at once. A program that failed says so in its results.
        ``seen``: the same threads in the same order, where they have been looked at since they stopped;
        ``meanwhile``: what to do ourselves while they run, which takes none of the ``timeout``.

        Raises ParasiteFailed when one crashes or takes longer than ``timeout`` seconds, ProcessEnded, Refused (a thread
        under seccomp that we may not suspend).
        """
        if not programs:
            return {}
        tracee = self._tracee
        linked = {tid: p.link() if isinstance(p, Program) else p for tid, p in programs.items()}
        people = travellers(seen or look(list(linked), tracee.registrations), tracee.memory, tracee.dispositions)
        stub_size = _up(whole_program(tracee.compat).size, ALIGN)
        slots, total = [], 0
        for program in linked.values():
            slots.append(total)
            total += _STACK + stub_size + _up(len(program.image), ALIGN)
        self.needed = max(self.needed, total)
        base = yield from self._injection.room(total)
        trips, writes, reads = [], [], []
        for traveller, slot, program in zip(people, slots, linked.values(), strict=True):
            entry = RemoteAddress(base + slot + _STACK)
            image = RemoteAddress(entry + stub_size)
            trip, stub = _prepared(traveller, entry, image, RemoteAddress(self.code + RUN))
            trips.append(trip)
            writes.append((entry, stub.ljust(stub_size, b"\0") + program.image))
            reads.append((image, len(program.image)))
        try:
            tracee.memory.write_many(writes)
            yield Leg(trips, timeout, meanwhile)
            images = tracee.memory.read_many(reads)
        except ProcessLookupError as error:
            raise ProcessEnded(f"process {tracee.pid} was killed while it was being looked at") from error
        return {tid: p.results(image) for (tid, p), image in zip(linked.items(), images, strict=True)}


@lru_cache(maxsize=4096)
def _prepared(
    traveller: Traveller, entry: RemoteAddress, image: RemoteAddress, run: RemoteAddress
) -> tuple[Trip, bytes]:
    """A trip and its stub. What a thread needs that has slept since the last time is what it needed then."""
    template = whole_program(traveller.registers.compat)
    stub = template.fill(traveller.literals() | {"stack": entry, "program": image, "run": run})
    return Trip(traveller, entry, template), stub


def _up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit

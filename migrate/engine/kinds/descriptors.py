"""The table of open files: which descriptor is which open file description, every description as data, and how all of
it is put back. How it is read is in kinds/descriptor_reader.py.

    plan = table.plan(Context(...))
    for program in plan.early(): …          # only where much content travels
    plan.write(program)
    locks.restore(program, table.locks)     # once nothing opens or closes files any more

Restore order: what several descriptions share (pipes, memfds, deleted files) and its contents, then every description
in its place, then who watches whom (epoll), owners of signals, and last inotify, which would see the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from migrate.engine.kernel.fdcalls import O_TMPFILE_BIT
from migrate.engine.kinds.contents import Chunk, write_chunks
from migrate.engine.kinds.deleted import DeletedFile
from migrate.engine.kinds.device import Device
from migrate.engine.kinds.directory import Directory, PlaceOnly
from migrate.engine.kinds.epoll import Epoll
from migrate.engine.kinds.eventfd import EventFd
from migrate.engine.kinds.inotify import Inotify
from migrate.engine.kinds.locks import Lock
from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.mqueue import PosixQueue
from migrate.engine.kinds.named import NamedMemory
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.owner import Owner
from migrate.engine.kinds.pidfd import PidFd
from migrate.engine.kinds.pipe import Pipe
from migrate.engine.kinds.placing import F_SETFL, SETTABLE, Context, Placing, flags_for_open
from migrate.engine.kinds.regular import SEEK_SET, Regular
from migrate.engine.kinds.signalfd import SignalFd
from migrate.engine.kinds.stdio import StandardStream
from migrate.engine.kinds.taken import Taken
from migrate.engine.kinds.terminal import HungUp, OwnTerminal, Pty
from migrate.engine.kinds.timerfd import TimerFd
from migrate.engine.kinds.unix import UnixPair
from migrate.engine.kinds.unix_single import UnixSocket
from migrate.engine.program import Program

EARLY = 4 << 20  # bytes of contents above which they go in programs of their own
STEP = 8 << 20  # bytes of contents in each of these

Watching = TypeVar("Watching", Epoll, Inotify)


@dataclass(frozen=True)
class Handle:
    """A description of one of the table's objects, by its position there. ``offset``: of a file; ``end``: which one of
    a pair of sockets, or of a pty (1: a slave)."""

    object: int
    offset: int
    end: int = 0

    applied: ClassVar[int] = 0

    def still_good(self, file: OpenFile) -> bool:
        return False

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []


Queue = Pipe | UnixPair | UnixSocket | Pty | PosixQueue  # what has no contents of a file
Object = Queue | Memfd | DeletedFile | NamedMemory
State = (
    Regular
    | Directory
    | PlaceOnly
    | Device
    | EventFd
    | Epoll
    | TimerFd
    | SignalFd
    | Inotify
    | PidFd
    | StandardStream
    | HungUp
    | OwnTerminal
    | Handle
    | Taken
)


@dataclass(frozen=True)
class Description:
    """An open file description. ``link``: as /proc shows it. ``flags``: of open(2), without O_CLOEXEC."""

    link: str
    flags: int
    owner: Owner | None
    state: State


@dataclass(frozen=True)
class Descriptor:
    """``description``: its position in the table's descriptions; shared after dup(2)."""

    number: int
    description: int
    cloexec: bool


@dataclass(frozen=True)
class DescriptorTable:
    """``descriptors`` by number; ``descriptions`` by their lowest number; ``objects`` by first use. ``lent``: numbers
    of descriptors that only others want, who take them from here (`Taken`), or that only wait in a socket; they are
    closed in the end."""

    descriptors: tuple[Descriptor, ...]
    descriptions: tuple[Description, ...]
    objects: tuple[Object, ...]
    locks: tuple[Lock, ...]
    lent: tuple[int, ...] = ()

    @property
    def takes(self) -> bool:
        """Whether it has something that another restoree makes."""
        return any(isinstance(description.state, Taken) for description in self.descriptions)

    def places(self) -> list[dict[int, bool]]:
        """For each description its numbers, and whether each is close-on-exec."""
        found: list[dict[int, bool]] = [{} for _ in self.descriptions]
        for descriptor in self.descriptors:
            found[descriptor.description][descriptor.number] = descriptor.cloexec
        return found

    def needs(self, pid: int) -> list[FileNeed]:
        """The paths that must be on the destination, for all descriptors of process ``pid``."""
        found: list[FileNeed] = []
        for description, places in zip(self.descriptions, self.places(), strict=True):
            where, state = f"pid {pid} fd {min(places)}", description.state
            found += state.needs(where, description.flags)
            if isinstance(state, Handle):
                found += self.objects[state.object].needs(where)
        return list(dict.fromkeys(found))

    @property
    def streams(self) -> tuple[int, ...]:
        """Descriptors that led outside and write: where their output goes must be chosen (``Context.stdio``)."""
        return tuple(
            descriptor.number
            for descriptor in self.descriptors
            if isinstance(state := self.descriptions[descriptor.description].state, StandardStream) and not state.input
        )

    def plan(self, context: Context) -> Plan:
        """What the restore will do. ValueError when a number is the restorer's own."""
        return Plan(self, context)

    def restore(self, program: Program, context: Context) -> None:
        """All of it in one program."""
        self.plan(context).write(program)


class Plan:
    """A restore of a table under way: `early` programs, where there are any, run before the one of `write`."""

    def __init__(self, table: DescriptorTable, context: Context) -> None:
        self.table, self.context = table, context
        self._places = table.places()
        self._labels = [
            f"fd {min(places)} ({description.link})"
            for places, description in zip(self._places, table.descriptions, strict=True)
        ]
        self._placing = Placing(Program("descriptors"), context, (d.number for d in table.descriptors))
        self._held: dict[int, tuple[int, ...]] = {}  # by position in the table's objects
        self._taken: set[tuple[int, int]] = set()  # held ends that became somebody's description
        self._limit_raised = False
        self._late: list[int] = []  # positions of sockets in which descriptors wait
        self._filled: set[int] = set()  # positions of objects whose contents early programs wrote

    def early(self) -> Iterator[Program]:
        """Programs that write contents, to be run before the address space is finished: of files that it made, which
        it then seals; and of all memfds and deleted files where there is so much that one program would not do."""
        much = sum(o.volume for o in self.table.objects if not isinstance(o, Queue)) > EARLY
        for index, made in enumerate(self.table.objects):
            if isinstance(made, Queue) or not made.chunks or not (much or made.key in self.context.objects):
                continue
            chunks = list(made.chunks)
            while chunks:
                program = self._begin(Program(f"contents of {self._label_of(index)}"))
                if index not in self._held:
                    self._make(index)
                self._placing.label = self._label_of(index)
                write_chunks(program, self._held[index][1], _take(chunks, STEP), self._placing.label)
                yield program
            self._filled.add(index)

    def write(self, program: Program) -> None:
        """The rest. It closes what the address space left open."""
        self.make(program)
        self.finish(program)
        self.leave(program)

    def make(self, program: Program) -> None:
        """All but what another restoree makes."""
        self._begin(program)
        # Sockets that listen take the names under which others were accepted.
        for index, made in sorted(enumerate(self.table.objects), key=lambda each: isinstance(each[1], UnixSocket)):
            if index not in self._held:
                self._make(index)
            self._placing.label = self._label_of(index)
            if isinstance(made, UnixPair) and made.rights:
                self._late.append(index)
            elif isinstance(made, Queue):
                made.fill(self._placing, self._held[index])
            else:
                ready = made.key in self.context.objects
                made.finish(self._placing, self._held[index][1], index not in self._filled, ready)
        self._place_all(late=False)
        for index, made in enumerate(self.table.objects):
            if isinstance(made, PosixQueue):
                made.forget(program, self._label_of(index))

    def finish(self, program: Program) -> None:
        """When the others have made theirs: what is taken from them, and who watches whom."""
        self._placing.program = program
        self._place_all(late=True)
        for index in self._late:
            made = self.table.objects[index]
            if isinstance(made, UnixPair):
                self._placing.label = self._label_of(index)
                made.fill(self._placing, self._held[index])
        for state, number in self._each(Epoll):
            state.watch(self._placing, number)
        for description, places, label in zip(self.table.descriptions, self._places, self._labels, strict=True):
            if description.owner is not None:
                self._placing.label = label
                description.owner.give(self._placing, min(places), description.flags)
        self._placing.release()
        for inotify, number in self._each(Inotify):
            inotify.watch(self._placing, number)

    def leave(self, program: Program) -> None:
        """When the others have taken what they want, and all is sent."""
        for description, places, label in zip(self.table.descriptions, self._places, self._labels, strict=True):
            state = description.state
            if isinstance(state, Handle) and not state.end:
                made = self.table.objects[state.object]
                if isinstance(made, Pty):
                    made.lock(program, min(places), label)
        for number in self.table.lent:
            program.syscall("close", number, label=f"fd {number}, which was for others")

    def _place_all(self, late: bool) -> None:
        for index, description in enumerate(self.table.descriptions):
            if isinstance(description.state, Taken | OwnTerminal) == late:
                self._place(index)

    def _begin(self, program: Program) -> Program:
        self._placing.program = program
        if not self._limit_raised:
            self._placing.raise_limit()
            self._limit_raised = True
        return program

    def _make(self, index: int) -> None:
        made, placing = self.table.objects[index], self._placing
        placing.label = self._label_of(index)
        ready = self.context.objects.get(made.key)
        if ready is not None:
            self._held[index] = ready, ready
        elif isinstance(made, Queue):
            self._held[index] = made.make(placing)
        else:
            number = placing.hold(made.make(placing))
            self._held[index] = number, number

    def _place(self, index: int) -> None:
        description, placing = self.table.descriptions[index], self._placing
        placing.label, placing.places = self._labels[index], self._places[index]
        flags = description.flags
        number, applied = self._open(description)
        if (flags ^ applied) & SETTABLE:
            placing.program.syscall("fcntl", number, F_SETFL, flags & SETTABLE, label=placing.label)
        placing.place(number, self._places[index])

    def _open(self, description: Description) -> tuple[int, int]:
        """A descriptor of it, and which of its flags it has already."""
        state, flags, placing = description.state, description.flags, self._placing
        if not isinstance(state, Handle):
            return state.open(placing, flags), flags & state.applied
        made, held = self.table.objects[state.object], self._held[state.object]
        if isinstance(made, UnixPair | UnixSocket):
            return placing.copy(held[state.end]), ~flags
        if isinstance(made, Pty):
            return (made.slave(placing, held[0], flags), flags) if state.end else (placing.copy(held[0]), ~flags)
        if isinstance(made, PosixQueue):
            return made.open(placing, held, flags), flags
        if isinstance(made, Pipe):
            end = state.object, flags & os.O_ACCMODE
            number = made.open(placing, held, flags, end not in self._taken)
            self._taken.add(end)
            return number, ~flags  # what is held does not block, whatever its end does: always set them
        if isinstance(made, NamedMemory):
            number = made.open(placing, flags_for_open(flags))
        else:
            number = placing.reopen(held[0], flags_for_open(flags) & ~(O_TMPFILE_BIT | os.O_DIRECTORY))
        if state.offset:
            program = placing.program
            program.syscall("lseek", number, state.offset, SEEK_SET, label=placing.label, expect=state.offset)
        return number, flags

    def _label_of(self, index: int) -> str:
        """Of an object: that of the first description of it."""
        for description, label in zip(self.table.descriptions, self._labels, strict=True):
            if isinstance(description.state, Handle) and description.state.object == index:
                return label
        return f"object {index}"

    def _each(self, kind: type[Watching]) -> Iterator[tuple[Watching, int]]:
        """The descriptions of a kind, each with one of its numbers."""
        for description, places, label in zip(self.table.descriptions, self._places, self._labels, strict=True):
            if isinstance(description.state, kind):
                self._placing.label = label
                yield description.state, min(places)


def _take(chunks: list[Chunk], limit: int) -> Sequence[Chunk]:
    """Chunks off the front, of at most ``limit`` bytes together but at least one."""
    count = total = 0
    while count < len(chunks) and (not count or total + len(chunks[count][1]) <= limit):
        total += len(chunks[count][1])
        count += 1
    taken = chunks[:count]
    del chunks[:count]
    return taken

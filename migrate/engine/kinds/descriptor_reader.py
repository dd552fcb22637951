"""Reads a process's descriptors from outside, once while it runs and again, quickly, when it is stopped."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence

from migrate.engine.kernel.fdcalls import O_PATH
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kinds import locks, outside, stdio
from migrate.engine.kinds.called import called
from migrate.engine.kinds.descriptors import Description, Descriptor, DescriptorTable, Handle, Object, State
from migrate.engine.kinds.device import EVERYWHERE, Device
from migrate.engine.kinds.directory import Directory, PlaceOnly
from migrate.engine.kinds.epoll import Epoll
from migrate.engine.kinds.eventfd import EventFd
from migrate.engine.kinds.file_checks import check_watches, is_shareable, is_still_there, node
from migrate.engine.kinds.flying import ALONE
from migrate.engine.kinds.inotify import Inotify
from migrate.engine.kinds.known_contents import KnownContents
from migrate.engine.kinds.listing import check_threads, open_files, went_away
from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.mqueue import PosixQueue
from migrate.engine.kinds.opened import Dump, DumpOptions, Key, OpenFile
from migrate.engine.kinds.owner import Owner
from migrate.engine.kinds.pidfd import PidFd
from migrate.engine.kinds.pipe import Pipe, is_pipe, leads_outside
from migrate.engine.kinds.regular import Regular
from migrate.engine.kinds.signalfd import SignalFd
from migrate.engine.kinds.stdio import StandardStream
from migrate.engine.kinds.terminal import MASTER, key
from migrate.engine.kinds.terminal_reader import TerminalReader, is_terminal
from migrate.engine.kinds.timerfd import TimerFd
from migrate.engine.kinds.unix import UnixPair
from migrate.engine.kinds.unix_reader import Known, UnixReader
from migrate.engine.kinds.unix_single import UnixSocket
from migrate.errors import Problem

# By what /proc/PID/fd shows behind "anon_inode:". A kind that is not here is refused by that name.
ANONYMOUS: dict[str, Callable[[OpenFile], State | None]] = {
    "[eventfd]": EventFd.dump,
    "[eventpoll]": Epoll.dump,
    "[timerfd]": TimerFd.dump,
    "[signalfd]": SignalFd.dump,
    "inotify": Inotify.dump,
    "[pidfd]": PidFd.dump,
}
_LOOKS = 3  # at a process that runs
_ATTEMPTS = 5  # at each of them
_CLOSE_IT = "close it, or stop what uses it"
LENT = 512  # the lowest number for what no process has


class DescriptorReader:
    """Dumps the descriptor table of one process, time and again. Remembers what it saw, so that a dump costs five
    cheap system calls for each descriptor where nothing changed.

    ``pidfd`` is that of the process; both stay the caller's. ``family``: processes that may share what it has open,
    because they move with it.
    """

    def __init__(self, proc: Proc, pidfd: int, family: frozenset[int] = frozenset()) -> None:
        self.proc, self.pidfd = proc, pidfd
        self.family = family | {proc.pid}
        self._states: dict[tuple[object, ...], tuple[State, Owner | None]] = {}
        self.contents = KnownContents()
        self.sockets = Known(self.family)
        self._owners: dict[tuple[str, Key, int], list[int]] = {}  # which other processes have a file

    def join(self, family: frozenset[int]) -> None:
        """These move together by now."""
        family |= {self.proc.pid}
        if family != self.family:
            self.family = self.sockets.family = family
            self._owners.clear()

    def dump(self, options: DumpOptions | None = None) -> tuple[DescriptorTable, list[Problem]]:
        """The table, and every reason why it cannot be moved; the table is whole only without any.

        While the process runs its descriptors may come and go meanwhile: what has gone is left out. OSError when the
        process is gone or we may not look.
        """
        options = options or DumpOptions()
        if options.frozen:
            return self._look(options)
        table, problems = self._look_while_it_runs(options)
        for _ in range(_LOOKS - 1):
            if not problems:
                break
            # A pipe of which we saw one end before the other was made looks as if it led outside: look again.
            table, again = self._look_while_it_runs(options)
            problems = [problem for problem in again if problem in problems]
        return table, problems

    def _look_while_it_runs(self, options: DumpOptions) -> tuple[DescriptorTable, list[Problem]]:
        """A number may lead elsewhere between two system calls about it, and back again: what fails for that does not
        fail every time."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._look(options)
            except (OSError, ProcFormatError):
                continue
        return self._look(options)

    def _look(self, options: DumpOptions) -> tuple[DescriptorTable, list[Problem]]:
        dump, files = self.files(options)
        table = Table(self, options, files, self.elsewhere(files, options.frozen))
        try:
            return table.build(), dump.problems
        finally:
            table.sockets.flying.close()

    def files(self, options: DumpOptions) -> tuple[Dump, list[OpenFile]]:
        """All that it has open."""
        dump = Dump(self.proc, self.pidfd, options)
        files = open_files(dump)
        check_threads(dump)
        return dump, files

    def elsewhere(self, files: Sequence[OpenFile], frozen: bool) -> dict[int, list[int]]:
        """Which others have a file, by position. Asked once for each that is ours alone: a process that is stopped
        gives away nothing, and one that runs would have to make a child, which is seen elsewhere."""
        keys = [(file.link, file.key, file.numbers[0]) for file in files]
        if not frozen:
            self._owners = {key: pids for key, pids in self._owners.items() if not pids}
        fresh = [
            position
            for position, file in enumerate(files)
            if keys[position] not in self._owners and is_shareable(file)
        ]
        if fresh:
            found = outside.holders([files[position] for position in fresh], self.family)
            for index, position in enumerate(fresh):
                self._owners[keys[position]] = found.get(index, [])
        return {position: pids for position, key in enumerate(keys) if (pids := self._owners.get(key))}


Row = tuple[OpenFile, State, Owner | None, list[int]]


class Table:
    """One dump: files in, table out. The files may be of several processes (see `kinds.family`)."""

    def __init__(
        self, reader: DescriptorReader, options: DumpOptions, files: list[OpenFile], elsewhere: dict[int, list[int]]
    ) -> None:
        self.reader, self.options, self.files = reader, options, files
        self.elsewhere = {id(files[position]): pids for position, pids in elsewhere.items()}
        self.objects: list[Object] = []
        self.handles: dict[Key, int] = {}  # positions of objects
        self.pipes: dict[Key, list[OpenFile]] = {}
        for file in filter(is_pipe, files):
            self.pipes.setdefault(file.key, []).append(file)
        sockets = [file for file in files if file.format == stat.S_IFSOCK and not file.flags & O_PATH]
        self.sockets = UnixReader(sockets, reader.sockets, options.frozen)
        self.terminals = TerminalReader(files, options.frozen)
        self.room = options.limit
        self.leading = self._leading_outside()
        streams = [file for file in files if id(file) in self.leading and stdio.NUMBERS & set(file.numbers)]
        self.stream_keys = {file.key for file in streams}
        self.stream_terminals = {device for file in streams if (device := self.terminals.device(file)) is not None}

    def build(self) -> DescriptorTable:
        descriptions: list[Description] = []
        descriptors: list[Descriptor] = []
        for file, state, owner, numbers in self.rows(self.files):
            descriptors += [Descriptor(number, len(descriptions), file.cloexec[number]) for number in numbers]
            descriptions.append(describe(file, state, owner))
        lent = self._lend(descriptions, descriptors)
        check_watches(self.files[0].dump if self.files else None, descriptions, descriptors)
        held = locks.dump(file for file in self.files if "lock:" in file.raw)
        return DescriptorTable(
            tuple(sorted(descriptors, key=lambda one: one.number)), tuple(descriptions), tuple(self.objects), held, lent
        )

    def _lend(self, descriptions: list[Description], descriptors: list[Descriptor]) -> tuple[int, ...]:
        """What waits in sockets: numbers of those that nobody has but a queue."""
        firsts = self.sockets.flying.firsts(file for file in self.files if id(file) not in self.leading)
        used, numbers, lent = {descriptor.number for descriptor in descriptors}, dict[int, int](), dict[int, int]()
        for position, first in enumerate(firsts):
            if first.carrier is not None and id(first) not in lent:
                described = self.alone(first)
                if described is None:
                    return ()
                lent[id(first)] = next(number for number in range(LENT, 1 << 20) if number not in used)
                used.add(lent[id(first)])
                descriptors.append(Descriptor(lent[id(first)], len(descriptions), True))
                descriptions.append(described)
            numbers[position] = lent.get(id(first), first.numbers[0])
        for index, made in enumerate(self.objects):
            if isinstance(made, UnixPair) and made.rights:
                self.objects[index] = made.with_rights(numbers)
        return tuple(lent.values())

    def alone(self, file: OpenFile) -> Description | None:
        """What a queue alone has. None: refused."""
        known, carrier = self.reader._states, file.carrier
        found = list(self.rows([file]))
        self.reader._states = known
        for _, state, owner, _ in found:
            if isinstance(state, ALONE):
                return describe(file, state, owner)
            file.refuse(f"{called(file, ANONYMOUS)} that nobody else has open")
        if not found and carrier is not None and not carrier.dump.problems:
            file.refuse(called(file, ANONYMOUS))
        return None

    def rows(self, files: list[OpenFile]) -> Iterator[Row]:
        """What each of them is: file, state, owner, and the numbers that it is for."""
        known: dict[tuple[object, ...], tuple[State, Owner | None]] = {}
        for file in files:
            problems = len(file.dump.problems)
            try:
                made = self._describe(file, known)
            except (OSError, ProcFormatError) as error:
                if self.options.frozen or (not went_away(error) and is_still_there(file)):
                    raise
                made = []
            if not made and not self.options.frozen and not is_still_there(file):
                del file.dump.problems[problems:]  # they were about something else that has its number now
            for state, owner, numbers in made:
                yield file, state, owner, numbers
        self.reader._states = known

    def _describe(
        self, file: OpenFile, known: dict[tuple[object, ...], tuple[State, Owner | None]]
    ) -> list[tuple[State, Owner | None, list[int]]]:
        """Its state and owner, for its numbers; none when it was refused."""
        if id(file) in self.leading:
            return self._stream(file)
        if id(file) in self.elsewhere and not is_pipe(file):
            whose = f"process {self.elsewhere[id(file)][0]} has open too"
            file.refuse(f"{called(file, ANONYMOUS)} that {whose}", _CLOSE_IT)
            return []
        identity = file.dump.pid, *file.identity()
        before = self.reader._states.get(identity)
        if before is not None and before[0].still_good(file):
            state, owner = before
        else:
            problems = len(file.dump.problems)
            found = self._state(file)
            owner = None if file.flags & O_PATH else Owner.dump(file)
            if found is None or len(file.dump.problems) > problems:
                return []
            state = found
        known[identity] = state, owner
        return [(state, owner, file.numbers)]

    def _state(self, file: OpenFile) -> State | None:
        """What it is, by kind. None: refused, with a problem."""
        if file.flags & O_PATH:
            return PlaceOnly.dump(file)
        kind = file.link.removeprefix("anon_inode:")
        if kind != file.link:
            maker = ANONYMOUS.get(kind)
            if maker is not None:
                return maker(file)
            file.refuse(called(file, ANONYMOUS), _CLOSE_IT)
            return None
        if file.link.startswith("pidfd:"):
            return PidFd.dump(file)
        if is_pipe(file):
            return self._pipe(file)
        if file.format == stat.S_IFSOCK:
            return self._socket(file)
        if not file.link.startswith("/") or file.link.startswith(("/secretmem", "/dmabuf:")):
            file.refuse(called(file, ANONYMOUS), _CLOSE_IT)
            return None
        return self._named(file)

    def _named(self, file: OpenFile) -> State | None:
        """What has a path."""
        if file.format == stat.S_IFDIR:
            return Directory.dump(file)
        if is_terminal(file):
            return self._terminal(file)
        if file.format == stat.S_IFCHR:
            return Device.dump(file)
        if file.format != stat.S_IFREG:
            file.refuse(called(file, ANONYMOUS), _CLOSE_IT)
            return None
        if PosixQueue.is_one(file):
            return self._queue(file)
        if Memfd.is_one(file.link) or (file.stat.st_nlink == 0 and file.link.endswith(" (deleted)")) or node(file):
            return self._travelling(file)
        return Regular.dump(file)

    def _travelling(self, file: OpenFile) -> State | None:
        if file.key in self.options.mapped and file.stat.st_nlink == 0 and not Memfd.is_one(file.link):
            file.refuse(f"deleted file that is mapped too ({file.link})", _CLOSE_IT)
            return None
        if file.key not in self.handles:
            made = self.reader.contents.of(file, self.room)
            if isinstance(made, Problem):
                file.refuse(made.what, made.advice)
                return None
            self.room -= made.volume
            self._add(made)
        return Handle(self.handles[file.key], file.info.pos)

    def _pipe(self, file: OpenFile) -> State | None:
        if file.key not in self.handles:
            made = Pipe.dump(self.pipes[file.key])
            if made is None:
                return None
            self._add(made)
        return Handle(self.handles[file.key], 0)

    def _terminal(self, file: OpenFile) -> State | None:
        single, index = self.terminals.single(file), self.terminals.index(file)
        if single is not None or index is None:
            return single
        if key(index) not in self.handles:
            made = self.terminals.dump(index)
            if made is None:
                return None
            self._add(made)
        return Handle(self.handles[key(index)], 0, int(file.stat.st_rdev != MASTER))

    def _queue(self, file: OpenFile) -> State | None:
        if file.key not in self.handles:
            made = PosixQueue.dump(file)
            if made is None:
                return None
            self._add(made)
        return Handle(self.handles[file.key], 0)

    def _socket(self, file: OpenFile) -> State | None:
        if file.key not in self.handles:
            made = self.sockets.dump(file)
            if made is None:
                return None
            self.handles.update({key: len(self.objects) for key in made.keys if key[1]})
            self._add(made)
        index = self.handles[file.key]
        there = self.objects[index]
        assert isinstance(there, UnixPair | UnixSocket)
        return Handle(index, 0, there.keys.index(file.key))

    def _add(self, made: Object) -> None:
        self.handles[made.key] = len(self.objects)
        self.objects.append(made)

    # What leads outside

    def _leading_outside(self) -> dict[int, str]:
        """Of each file that does (by id), in words what it is."""
        found: dict[int, str] = {}
        for file in self.files:
            if file.flags & O_PATH:
                continue
            if file.format == stat.S_IFSOCK:
                if (leads := self.sockets.leading_outside(file)) is not None:
                    found[id(file)] = leads
            elif file.format == stat.S_IFCHR and file.stat.st_rdev not in EVERYWHERE:
                if is_terminal(file) and self.terminals.inside(file):
                    continue
                terminal = os.major(file.stat.st_rdev) in (4, 5, *range(136, 144))
                found[id(file)] = f"{'terminal' if terminal else 'device'} {file.link}"
        for ends in self.pipes.values():
            ends = [end for end in ends if not end.flags & O_PATH]
            try:
                whose = (
                    leads_outside(ends, sorted({pid for end in ends for pid in self.elsewhere.get(id(end), ())}))
                    if ends
                    else None
                )
            except OSError as error:
                if self.options.frozen or not went_away(error):
                    raise
                continue
            if whose is not None:
                kind = "pipe" if ends[0].link.startswith("pipe:") else f"FIFO {ends[0].link}"
                found.update({id(end): f"{kind} to {whose}" for end in ends})
        return found

    def _stream(self, file: OpenFile) -> list[tuple[State, Owner | None, list[int]]]:
        """A standard stream, or refused. Of a description open for both, descriptor 0 reads and the others write."""
        what = self.leading[id(file)]
        if file.key not in self.stream_keys and self.terminals.device(file) not in self.stream_terminals:
            file.refuse(what, f"{_CLOSE_IT}; only standard streams may lead outside")
            return []
        if not file.writes:
            return [(StandardStream(True), None, file.numbers)]
        readers = [number for number in file.numbers if number == 0 and file.reads]
        writers = [number for number in file.numbers if number not in readers]
        made: list[tuple[State, Owner | None, list[int]]] = []
        if readers:
            made.append((StandardStream(True), None, readers))
        if writers:
            made.append((StandardStream(False), None, writers))
        return made


def describe(file: OpenFile, state: State, owner: Owner | None) -> Description:
    """As part of a table."""
    return Description(file.link, 0 if isinstance(state, StandardStream) else file.flags, owner, state)

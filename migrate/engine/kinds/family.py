"""The descriptors of all processes of a tree, and which open file descriptions they share.

Every description is made by one process, the first that has it, and the others take it from there (`Taken`). What
several descriptions share (the two ends of a pipe, a memfd) is made by one process together with all of them: those
that it does not have itself are lent, at numbers that nobody uses, until the others have taken them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from migrate.engine.kinds import locks
from migrate.engine.kinds.descriptor_reader import DescriptorReader, Table, check_watches, describe
from migrate.engine.kinds.descriptors import Description, Descriptor, DescriptorTable, Handle, Object, State
from migrate.engine.kinds.listing import same_among, went_away
from migrate.engine.kinds.mapped import mapped_objects
from migrate.engine.kinds.opened import Dump, DumpOptions, Key, OpenFile
from migrate.engine.kinds.owner import Owner
from migrate.engine.kinds.taken import Taken
from migrate.engine.kinds.unix import UnixPair, UnixSocket
from migrate.engine.kinds.vma import VMA
from migrate.errors import Problem

_LOOKS = 4  # at processes that run
_LENT = 512  # the lowest number for what is lent

Answer = tuple[DescriptorTable, list[Problem]]


@dataclass
class _Own:
    """What becomes of one process's table."""

    descriptions: list[Description] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    placed: dict[int, int] = field(default_factory=dict)  # position of an object among all -> here
    lent: list[int] = field(default_factory=list)
    locks: tuple[locks.Lock, ...] = ()

    def add(self, description: Description, numbers: dict[int, bool]) -> None:
        self.descriptors += [Descriptor(number, len(self.descriptions), cloexec) for number, cloexec in numbers.items()]
        self.descriptions.append(description)

    def table(self) -> DescriptorTable:
        descriptors = sorted(self.descriptors, key=lambda one: one.number)
        return DescriptorTable(
            tuple(descriptors), tuple(self.descriptions), tuple(self.objects), self.locks, tuple(self.lent)
        )


class Family:
    """Dumps them together. ``readers``: of each process, parents first."""

    def __init__(self, readers: Sequence[DescriptorReader]) -> None:
        self._readers = readers

    def dump(self, frozen: bool, spaces: Sequence[Sequence[VMA]]) -> list[Answer]:
        """The table of each, and every reason why it cannot be moved. ``spaces``: the VMAs of each."""
        mapped: dict[Key, list[tuple[int, int]]] = {}
        mappers: dict[Key, list[int]] = {}
        for position, vmas in enumerate(spaces):
            for key, ranges in mapped_objects(vmas).items():
                mapped.setdefault(key, []).extend(ranges)
                mappers.setdefault(key, []).append(position)
        options = DumpOptions(frozen, {key: tuple(sorted(set(ranges))) for key, ranges in mapped.items()})
        for attempt in range(1 if frozen else _LOOKS):
            try:
                answers = self._look(options, mappers)
            except OSError as error:
                if frozen or not went_away(error) or attempt == _LOOKS - 1:
                    raise
                continue
            if not any(problems for _, problems in answers):
                break
        return answers

    def _look(self, options: DumpOptions, mappers: dict[Key, list[int]]) -> list[Answer]:
        found = [reader.files(options) for reader in self._readers]
        dumps = [dump for dump, _ in found]
        files = [file for _, own in found for file in own]
        first = self._readers[0]
        table = Table(first, options, files, first.elsewhere(files, options.frozen))
        same = same_among([file for file in files if id(file) not in table.leading])
        makers = [file for file in files if id(file) not in same]
        return _Sharing(dumps, table, files, makers, same, mappers).tables()


class _Sharing:
    """Who makes what."""

    def __init__(
        self,
        dumps: Sequence[Dump],
        table: Table,
        files: Sequence[OpenFile],
        firsts: list[OpenFile],
        same: dict[int, OpenFile],
        mappers: dict[Key, list[int]],
    ) -> None:
        """``same``: by id of a file, the first one that is of the same description."""
        self.dumps, self.table, self.files, self.firsts, self.mappers = dumps, table, files, firsts, mappers
        self.position = {dump.pid: position for position, dump in enumerate(dumps)}
        self.holders: dict[int, list[OpenFile]] = {id(file): [file] for file in firsts}
        for file in files:
            if id(file) in same:
                self.holders[id(same[id(file)])].append(file)
        self.own = [_Own() for _ in dumps]
        self.names: dict[bytes, int] = {}  # of sockets, and who makes them
        used = {number for file in files for number in file.numbers}
        self.free = (number for number in range(_LENT, 1 << 20) if number not in used)

    def tables(self) -> list[Answer]:
        rows = list(self.table.rows(self.firsts))
        makers = self._makers(rows)
        for file, state, owner, numbers in rows:
            self._place(file, state, owner, numbers, makers)
        for dump, own in zip(self.dumps, self.own, strict=True):
            check_watches(dump, own.descriptions, own.descriptors)
            own.locks = tuple(self._locks(dump))
        return [(own.table(), dump.problems) for own, dump in zip(self.own, self.dumps, strict=True)]

    def _makers(self, rows: Sequence[tuple[OpenFile, State, Owner | None, list[int]]]) -> dict[int, int]:
        """For each object the process that makes it: one that has it mapped, for that has made it already; else the
        first that has a description of it."""
        found: dict[int, int] = {}
        for file, state, _, _ in rows:
            if isinstance(state, Handle):
                holder = self.position[file.dump.pid]
                mapping = self.mappers.get(file.key)
                found.setdefault(state.object, mapping[0] if mapping else self._noted(state.object, holder))
        return found

    def _noted(self, position: int, holder: int) -> int:
        """Who has made a pair of sockets, for that shows (SO_PEERCRED), if it is one of them; else ``holder``. Sockets
        of one name are made by one process, because that has to keep an order (`Plan.make`)."""
        made = self.table.objects[position]
        if not isinstance(made, UnixPair | UnixSocket):
            return holder
        maker = next((at for at, dump in enumerate(self.dumps) if dump.own_pid == made.maker), holder)
        return self.names.setdefault(made.name, maker) if made.name else maker

    def _place(
        self, file: OpenFile, state: State, owner: Owner | None, numbers: list[int], makers: dict[int, int]
    ) -> None:
        holders = {self.position[each.dump.pid]: each for each in self.holders[id(file)]}
        maker = self.position[file.dump.pid]
        if isinstance(state, Handle):
            maker = makers[state.object]
            own = self.own[maker]
            if state.object not in own.placed:
                own.placed[state.object] = len(own.objects)
                own.objects.append(self.table.objects[state.object])
            state = replace(state, object=own.placed[state.object])
        made, there = describe(file, state, owner), holders.get(maker)
        if there is None:
            lent = next(self.free)
            self.own[maker].lent.append(lent)
            self.own[maker].add(made, {lent: True})
        else:
            if there is not file:
                numbers = there.numbers
            self.own[maker].add(made, {number: there.cloexec[number] for number in numbers})
            lent = min(numbers)
        for position, each in holders.items():
            if position != maker:
                taken = Description(file.link, file.flags, None, Taken(self.table_pid(maker), lent))
                self.own[position].add(taken, dict(each.cloexec))

    def table_pid(self, position: int) -> int:
        """The number by which the others know it."""
        return self.dumps[position].own_pid

    def _locks(self, dump: Dump) -> Iterator[locks.Lock]:
        """Those of a description are told once, by the first that has it."""
        firsts = {id(file) for file in self.firsts}
        own = [file for file in self.files if file.dump is dump and "lock:" in file.raw]
        theirs = {number for file in own if id(file) not in firsts for number in file.numbers}
        for lock in locks.dump(own):
            if lock.kind == locks.POSIX or lock.number not in theirs:
                yield lock


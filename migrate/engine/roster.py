"""Who moves: a process and its descendants on the source, as they come and go while they are copied.

Each has an id, the order in which they were met, which stays its own. One that has executed another program since
(execve(2)) keeps its id, and is begun anew: nothing of what was known of it holds any longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from agents import settling
from migrate.engine import kin, vforks
from migrate.engine.descent import Descent
from migrate.engine.ipc import IpcReader
from migrate.engine.kernel.maps import proportional
from migrate.engine.kernel.status import status
from migrate.engine.kin import Kin
from migrate.engine.kinds import common, mapped
from migrate.engine.kinds.descriptors import DescriptorTable
from migrate.engine.kinds.family import Family
from migrate.engine.kinds.mqueue import PosixQueue
from migrate.engine.kinds.sysv import Ipc
from migrate.engine.marks import Mark, lives, mark_of
from migrate.engine.member import Member
from migrate.engine.shares import FILES, MEMORY, Sharers, Shares
from migrate.engine.sharing import Sharing
from migrate.engine.tracee.detour import ProcessEnded
from migrate.engine.tracee.inspection import why_not_traceable
from migrate.errors import KinChanged, Problem, Refused

_LOOKS = 3  # at a tree that changes while it is looked at

SendMemberPages = Callable[[int, int, bytes, memoryview], None]  # id of the member, flags, meta, contents
Tracking = tuple[str, str, float | None]  # arguments of `Member.track`


@dataclass(frozen=True)
class Lineup:
    """Who there is, parents first, and what they are to each other."""

    ids: tuple[int, ...]
    tree: tuple[Kin, ...]


@dataclass
class Change:
    """Since somebody was told last, by id. ``left``: numbers of those that live and are no descendants any more."""

    born: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    renewed: set[int] = field(default_factory=set)
    left: list[int] = field(default_factory=list)
    other: bool = False  # parents or sessions

    def __bool__(self) -> bool:
        return bool(self.born or self.gone or self.renewed or self.other)

    def note_gone(self, id: int) -> None:
        """Nobody need be told of one that has come and gone meanwhile."""
        self.renewed.discard(id)
        if id in self.born:
            self.born.discard(id)
        else:
            self.gone.add(id)


class Roster:
    """All of them, by id."""

    def __init__(self, pid: int, send_pages: SendMemberPages) -> None:
        """Refused when one of them cannot even be looked at, or they cannot be moved together."""
        self._pid, self._send_pages = pid, send_pages
        self.members: dict[int, Member] = {}
        self.ids: list[int] = []  # parents first
        self.tree: list[Kin] = []
        self.change = Change()
        self.ipc = IpcReader()
        self.several = False  # processes, if only dead ones
        self.tracking: Tracking | None = None
        self._marks: dict[int, Mark] = {}
        self._started: dict[int, int] = {}
        self._family: Family | None = None
        self._family_of: list[int] = []
        self._next = 0
        self._fresh: set[int] = set()  # with which nothing has been done yet
        self._related: dict[int, tuple[int, int, Shares, int]] = {}  # parent, session, shares and terminal
        self._sharers = Sharers()
        self._terminals = kin.Terminals()
        try:
            if problems := why_not_traceable(pid):
                raise Refused(problems)  # also where there is none
            self._add(pid)
            self.ids = [0]
            self.several = len(kin.descendants(pid)) > 1
            self._find()
        except BaseException:
            self.close()
            raise
        self.change = Change()

    def _find(self) -> None:
        """All of them for the first time. Of those that come and go all the time no picture can be had but when they
        stand still for a moment."""
        for _ in range(_LOOKS):
            try:
                self._scan(meeting=True)
                self.settle()
                self.several = self.several or not self.tree[0].single
                others = len(kin.descendants(self._pid)) > len(self.ids)  # by now
                if not others and not self._problems():
                    return
            except (FileNotFoundError, ProcessLookupError, ProcessEnded):
                if not lives(self._pid):
                    raise
            self._fresh |= set(self.members)
        if not self.several:
            raise Refused(self._problems())
        self.hold(lambda member: member.dumper.stop())
        self.let_go()

    @property
    def all(self) -> list[Member]:
        """Parents first."""
        return [self.members[id] for id in self.ids]

    def people(self) -> list[list[int]]:
        """Number and time of start of each (`agents.settling.person`); also of those that have ended since."""
        return [[self.members[id].pid, self._started[id]] for id in self.ids]

    def lineup(self) -> Lineup:
        """For whoever makes them again."""
        return Lineup(tuple(self.ids), tuple(self.tree))

    def tell(self) -> Change:
        """What has changed since the last call."""
        change, self.change = self.change, Change()
        return change

    def maker(self, id: int) -> Member:
        """Whose memory the restoree of this one gets a copy of: that of the one whose restoree makes it."""
        maker = self.all[Descent(self.tree).maker[self.ids.index(id)]]
        return maker.landlord or maker

    def memory(self) -> int:
        """Bytes that all of them have in memory, what several have counted once."""
        largest = shares = 0
        for proc in (member.dumper.proc for member in self.all if member.landlord is None):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                largest = max(largest, status(proc.text("status")).vm.get("VmRSS", 0))
                shares += proportional(proc.text("smaps_rollup")) if len(self.ids) > 1 else 0
        return max(largest, shares) << 10

    # Coming and going

    def _add(self, pid: int) -> None:
        self._make(self._next, pid)
        self.change.born.add(self._next)
        self._next += 1

    def _make(self, id: int, pid: int) -> None:
        mark, started = mark_of(pid), settling.start_time(pid)
        if problems := why_not_traceable(pid):
            mark_of(pid)  # if it lives
            raise Refused(problems)
        member = Member(pid, lambda *frame: self._send_pages(id, *frame), frozenset([pid]), self.ipc)
        self.members[id], self._marks[id], self._started[id] = member, mark, started
        self._fresh.add(id)

    def has_changed(self, id: int) -> bool:
        """Whether it has ended, or executed another program."""
        try:
            return mark_of(self.members[id].pid) != self._marks[id]
        except (FileNotFoundError, ProcessLookupError):
            return True

    def is_changed(self, member: Member) -> bool:
        """The same."""
        return any(self.has_changed(id) for id, each in self.members.items() if each is member)

    def follow(self) -> None:
        """Who has come or gone, while they run. Where some have, all stand still for a moment. Raises KinChanged and
        Refused, as of `hold`."""
        try:
            if not self._scan():
                return
        except (FileNotFoundError, ProcessLookupError, ProcessEnded):
            if not lives(self._pid):
                raise
        self.hold(lambda member: member.dumper.stop())
        self.let_go()

    def _scan(self, meeting: bool = False) -> bool:
        """Who there is; whether that has changed. ``meeting``: for the first time, when one that is met alone may turn
        out to be several, or another program. Later that raises KinChanged."""
        pids = kin.descendants(self._pid)
        known = {member.pid: id for id, member in self.members.items()}
        if meeting:
            self.several = self.several or len(pids) > 1
        elif not self.several and len(pids) > 1:
            raise KinChanged(f"process {pids[1]} has joined process {pids[0]} meanwhile")
        gone = [id for pid, id in known.items() if pid not in pids]
        renewed = [id for pid, id in known.items() if pid in pids and self.has_changed(id)]
        if 0 in renewed and not self.several and not meeting:
            raise KinChanged(f"process {self._pid} has executed another program meanwhile")
        try:
            for id in gone:
                self._drop(id)
            for id in renewed:
                pid = self.members[id].pid
                self._close(self.members.pop(id))
                try:
                    self._make(id, pid)
                except (FileNotFoundError, ProcessLookupError):
                    self.change.note_gone(id)
                    gone.append(id)
                    continue
                except BaseException:
                    self.change.note_gone(id)
                    raise
                if id not in self.change.born:
                    self.change.renewed.add(id)
            for pid in pids:
                if pid not in known:
                    with suppress(FileNotFoundError, ProcessLookupError):
                        self._add(pid)
                        renewed.append(self._next - 1)
        finally:  # whatever becomes of one of them
            by_pid = {member.pid: id for id, member in self.members.items()}
            self.ids = [by_pid[pid] for pid in pids if pid in by_pid]
        return bool(gone or renewed)

    def settle(self, held: bool = False) -> bool:
        """What has been done with the others already is done with those that are new; whether there were any.
        ``held``: all of them stand still, and stay so."""
        self._relate()
        now = self._relations()
        self.change.other |= any(now[id] != self._related[id] for id in now if id in self._related)
        self._related = now
        fresh = [id for id in self.ids if id in self._fresh]
        if self._family_of != self.ids or fresh:
            for member in self.all:
                member.join(frozenset(member.pid for member in self.all))
            self._look_together()
        for id in fresh:
            member = self.members[id]
            member.preview = member.inspect(self.tree[self.ids.index(id)])
            if self.tracking is not None:
                member.track(*self.tracking, held=held)
        self._fresh.clear()
        return bool(fresh)

    def _drop(self, id: int) -> None:
        member = self.members.pop(id)
        if lives(member.pid):
            self.change.left.append(member.pid)
        self.change.note_gone(id)
        self._close(member)

    def _close(self, member: Member) -> None:
        with suppress(ProcessEnded, OSError):  # it is not there any more
            member.close()

    # Together

    def _relate(self) -> None:
        pids = [member.pid for member in self.all]
        processes = [member.dumper.proc for member in self.all]
        tree = self._terminals.told(processes, [kin.kin_of(proc, pids) for proc in processes])
        fresh = [self.members[id].pid for id in self._fresh if id in self.members]
        shares = self._sharers.find(pids, [each.pid for each in tree], fresh)
        self.tree = [replace(each, shares=its) for each, its in zip(tree, shares, strict=True)]
        self._lodge()
        for member in self.all:
            member.dumper.follows = self.several

    def _lodge(self) -> None:
        """Who shares memory with whom. Raises KinChanged where one of them gets what was another's to be dumped."""
        everybody, sharing = self.all, Sharing(self.tree)
        for position, member in enumerate(everybody):
            house = [everybody[each] for each in sharing.group(position, MEMORY)]
            known = self.tracking is not None and self.ids[position] not in self._fresh
            if known and (member.landlord or member) is not house[0]:
                raise KinChanged(f"process {member.pid} shares its memory with others than before")
            member.lodge(house)

    def _relations(self) -> dict[int, tuple[int, int, Shares, int]]:
        return {
            id: (self.ids[each.parent] if each.parent >= 0 else -1, each.session, each.shares, each.terminal)
            for id, each in zip(self.ids, self.tree, strict=True)
        }

    def _problems(self) -> list[Problem]:
        processes = [each.dumper.proc for each in self.all]
        outside = kin.shared_outside(processes, self.tree)
        if not self.several:
            return outside
        return outside + kin.problems(processes, self.tree) + self._unmakable()

    def _unmakable(self) -> list[Problem]:
        descent = Descent(self.tree)
        return descent.problems() or Sharing(self.tree, descent).problems()

    def check(self) -> None:
        """Refused where what those are to each other that stand still could not be made again."""
        if self.several and (problems := self._unmakable()):
            raise Refused(problems)

    def _look_together(self) -> None:
        members, self._family_of = self.all, list(self.ids)
        self._family = Family([member.dumper.files for member in members]) if self.several else None
        if self._family is not None:
            for member in members:
                member.dumper.spaces.read()
            self.find_common()
            self.read_files(frozen=False)

    def find_common(self) -> None:
        """Shared memory that several of them have mapped, and who sends it."""
        owners = self._owners
        spaces = [member.dumper.spaces for member in owners]
        shared = common.objects([space.vmas for space in spaces])
        for member in self.all:
            member.dumper.know_common(shared)
        for member, elsewhere in zip(owners, common.elsewhere([space.vmas for space in spaces]), strict=True):
            member.elsewhere = elsewhere

    def read_files(self, frozen: bool) -> None:
        """The descriptors of all of them at once, for they share some."""
        if self._family is not None:
            owners = Sharing(self.tree).owners(FILES)
            spaces = [member.dumper.spaces.vmas if member.landlord is None else [] for member in self.all]
            tables = self._family.dump(frozen, spaces, owners)
            for member, table in zip(self.all, tables, strict=True):
                member.dumper.table = table

    def read_ipc(self, frozen: bool, tables: Sequence[DescriptorTable]) -> tuple[Ipc, list[Problem]]:
        """The System V objects of all of them, after their memory has been read. ``tables``: their descriptors. What
        some share (memory, descriptors) counts once."""
        pids, spaces = [each.pid for each in self.all], [each.dumper.vmas for each in self._owners]
        queues = {made.key: made for table in tables for made in table.objects if isinstance(made, PosixQueue)}
        return self.ipc.look(pids, spaces, frozen, [*queues.values()])

    def unseen(self) -> list[Problem]:
        """Shared memory with a name that they do not show as a whole."""
        return mapped.unseen((f"pid {each.pid}", each.dumper.vmas) for each in self._owners)

    @property
    def _owners(self) -> list[Member]:
        """Of those who share memory the one that it is dumped with, and all others."""
        return [member for member in self.all if member.landlord is None]

    @property
    def tables(self) -> list[DescriptorTable]:
        """The descriptors of all of them, as far as they have been seen."""
        return [each.dumper.seen_table for each in self.all if each.dumper.seen_table is not None]

    # Standing still

    def hold(self, stop: Callable[[Member], object]) -> None:
        """Stop all of them, those included that are born meanwhile. Whatever fails, they are let go. Raises KinChanged
        where no way leads from what was known to what there is, and Refused where they cannot be moved together."""
        stopped: list[Member] = []  # not those of which nothing was known when they were
        if self.several:
            vforks.wait([member.dumper.proc for member in self.all])
        self.held_since = time.monotonic()
        try:
            for member in self.all if self.several else ():
                member.dumper.tracee.summon()
            while True:
                for id in list(self.ids):
                    member = self.members[id]
                    try:
                        if id in self._fresh:
                            member.dumper.stop()
                        elif member not in stopped:
                            stop(member)
                            stopped.append(member)
                    except (Refused, ProcessEnded, OSError):
                        # What is known of a program does not hold for the next one, which is found out below.
                        if not self.has_changed(id) or not lives(self._pid):
                            raise
                if self._scan():
                    continue
                if self.settle(held=True):
                    if problems := self._problems():
                        raise Refused(problems)
                elif all(member in stopped for member in self.all):
                    for member in self.all:
                        if member.shares_memory:
                            member.dumper.distrust()
                    return
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """All of them go on. Whatever fails, all of it is tried."""
        with ExitStack() as each:  # the last one first
            for member in self.all:
                each.callback(member.resume)
            for member in self.all:
                if member.shares_memory:  # before any of them runs: what is in one of them is in the others, too
                    each.callback(member.put_right)

    def close(self) -> None:
        """Leave no trace in any. Whatever fails, all of it is tried."""
        members, self.members, self.ids = list(self.members.values()), {}, []
        with ExitStack() as each:
            for member in members:
                each.callback(member.close)
            for member in members:
                if member.shares_memory and member.held:  # see `let_go`
                    each.callback(member.put_right)

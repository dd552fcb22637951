"""Who moves: a process and its descendants on the source, as they come and go while they are copied.

Each has an id, the order in which they were met, which stays its own. One that has executed another program since
(execve(2)) keeps its id, and is begun anew: nothing of what was known of it holds any longer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from migrate.engine import kin
from migrate.engine.kernel.maps import proportional
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import stat
from migrate.engine.kernel.status import status
from migrate.engine.kin import Kin
from migrate.engine.kinds import children, common
from migrate.engine.kinds.family import Family
from migrate.engine.member import Member
from migrate.engine.tracee.detour import ProcessEnded
from migrate.engine.tracee.inspection import why_not_traceable
from migrate.errors import Failed, KinChanged, Refused

_LOOKS = 8  # at a tree that changes while it is looked at

SendMemberPages = Callable[[int, int, bytes, memoryview], None]  # id of the member, flags, meta, contents
Mark = tuple[int, ...]
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
        self.several = False  # processes, if only dead ones
        self.tracking: Tracking | None = None
        self._marks: dict[int, Mark] = {}
        self._family: Family | None = None
        self._next = 0
        self._fresh: set[int] = set()  # with which nothing has been done yet
        self._related: dict[int, tuple[int, int]] = {}  # parent and session
        try:
            if problems := why_not_traceable(pid):
                raise Refused(problems)
            pids = kin.descendants(pid)
            if problems := [problem for each in pids[1:] for problem in why_not_traceable(each)]:
                raise Refused(problems)
            for each in pids:
                self._add(each, frozenset(pids))
            self.ids = list(self.members)
            self._relate()
            self._related = self._relations()
            self.several = len(pids) > 1 or bool(self.tree[0].zombies)
            for member in self.all:
                member.dumper.follows = self.several
            self.check()
            self._look_together()
        except BaseException:
            self.close()
            raise
        self.change = Change()

    @property
    def all(self) -> list[Member]:
        """Parents first."""
        return [self.members[id] for id in self.ids]

    def lineup(self) -> Lineup:
        """For whoever makes them again."""
        return Lineup(tuple(self.ids), tuple(self.tree))

    def tell(self) -> Change:
        """What has changed since the last call."""
        change, self.change = self.change, Change()
        return change

    def parent(self, id: int) -> Member:
        """Of another than the first."""
        return self.all[self.tree[self.ids.index(id)].parent]

    def memory(self) -> int:
        """Bytes that all of them have in memory, what several have counted once."""
        largest = shares = 0
        for proc in (member.dumper.proc for member in self.all):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                largest = max(largest, status(proc.text("status")).vm.get("VmRSS", 0))
                shares += proportional(proc.text("smaps_rollup")) if len(self.ids) > 1 else 0
        return max(largest, shares) << 10

    # Coming and going

    def _add(self, pid: int, family: frozenset[int]) -> int:
        id, self._next = self._next, self._next + 1
        self._make(id, pid, family)
        self.change.born.add(id)
        return id

    def _make(self, id: int, pid: int, family: frozenset[int]) -> None:
        mark = mark_of(pid)
        self.members[id] = Member(pid, lambda *frame: self._send_pages(id, *frame), family)
        self._marks[id] = mark

    def has_changed(self, id: int) -> bool:
        """Whether it has ended, or executed another program."""
        try:
            return mark_of(self.members[id].pid) != self._marks[id]
        except (FileNotFoundError, ProcessLookupError):
            return True

    def is_changed(self, member: Member) -> bool:
        """The same."""
        return any(self.has_changed(id) for id, each in self.members.items() if each is member)

    def update(self, still: bool) -> bool:
        """Follow what has changed; whether anything has. ``still``: all that were known stand still, so that nothing
        that is seen is in passing.

        Raises KinChanged where no way leads from what was known to what there is, and Refused where they cannot be
        moved together any more."""
        for left in range(_LOOKS, -1, -1):
            try:
                return self._update(still)
            except (FileNotFoundError, ProcessLookupError, ProcessEnded):
                if not left or not _lives(self._pid):
                    raise
        raise AssertionError

    def _update(self, still: bool) -> bool:
        pids = [pid for pid in kin.descendants(self._pid) if pid == self._pid or _lives(pid)]
        known = {member.pid: id for id, member in self.members.items()}
        if not self.several and len(pids) > 1:
            raise KinChanged(f"process {pids[1]} has joined process {pids[0]} meanwhile")
        gone = [id for pid, id in known.items() if pid not in pids]
        renewed = [id for pid, id in known.items() if pid in pids and self.has_changed(id)]
        born = [pid for pid in pids if pid not in known]
        if not still:
            # A child that borrows its parent's memory is about to execute a program (vfork(2)), or it is refused later.
            born = [pid for pid in born if not kin.shares_memory(pid)]
            pids = [pid for pid in pids if pid in known or pid in born]
        if 0 in renewed and len(pids) == 1 and not self.several:
            raise KinChanged(f"process {self._pid} has executed another program meanwhile")
        family = frozenset(pids)
        for id in gone:
            self._drop(id)
        for id in renewed:
            with suppress(ProcessEnded, OSError):
                self.members[id].close()
            self._make(id, self.members[id].pid, family)
            if id not in self.change.born:
                self.change.renewed.add(id)
        fresh = [*renewed, *[self._add(pid, family) for pid in born]]
        self._fresh |= set(fresh)
        by_pid = {member.pid: id for id, member in self.members.items()}
        self.ids = [by_pid[pid] for pid in pids]
        self._relate()
        now = self._relations()
        other = any(now[id] != self._related[id] for id in now if id in self._related)
        self.change.other |= other
        self._related = now
        if gone or self._fresh:
            for member in self.members.values():
                member.join(family)
            self._look_together()
            for id in sorted(self._fresh & set(self.ids)):
                self._begin(id)
            self._fresh.clear()
        if still and fresh:
            processes = [member.dumper.proc for member in self.all]
            if problems := kin.problems(processes, self.tree):
                raise Refused(problems)
        return bool(gone or fresh or other)

    def _drop(self, id: int) -> None:
        member = self.members.pop(id)
        if _lives(member.pid):
            self.change.left.append(member.pid)
        self.change.note_gone(id)
        with suppress(ProcessEnded, OSError):
            member.close()

    def _begin(self, id: int) -> None:
        """What has been done with the others already."""
        member = self.members[id]
        member.preview = member.inspect(self.tree[self.ids.index(id)])
        if self.tracking is not None:
            member.track(*self.tracking)

    # Together

    def _relate(self) -> None:
        pids = [member.pid for member in self.all]
        self.tree = [kin.kin_of(member.dumper.proc, pids) for member in self.all]
        for member in self.all:
            member.dumper.follows = self.several

    def _relations(self) -> dict[int, tuple[int, int]]:
        return {
            id: (self.ids[each.parent] if each.parent >= 0 else -1, each.session)
            for id, each in zip(self.ids, self.tree, strict=True)
        }

    def relate(self) -> None:
        """Who is whose, of those that stand still. Refused where that could not be made again."""
        self._relate()
        if self.several and (problems := kin.standing(self.tree)):
            raise Refused(problems)

    def check(self) -> None:
        """Refused where they cannot be moved together."""
        if self.several and (problems := kin.problems([each.dumper.proc for each in self.all], self.tree)):
            raise Refused(problems)

    def _look_together(self) -> None:
        members = self.all
        self._family = Family([member.dumper.files for member in members]) if self.several else None
        if self._family is not None:
            for member in members:
                member.dumper.spaces.read()
            self.find_common()
            self.read_files(frozen=False)

    def find_common(self) -> None:
        """Shared memory that several of them have mapped, and who sends it."""
        if not self.several:
            return
        spaces = [member.dumper.spaces for member in self.all]
        shared = common.objects([space.vmas for space in spaces])
        for member in self.all:
            member.dumper.know_common(shared)
        for member, elsewhere in zip(self.all, common.elsewhere([space.vmas for space in spaces]), strict=True):
            member.elsewhere = elsewhere

    def read_files(self, frozen: bool) -> None:
        """The descriptors of all of them at once, for they share some."""
        if self._family is not None:
            tables = self._family.dump(frozen, [member.dumper.spaces.vmas for member in self.all])
            for member, table in zip(self.all, tables, strict=True):
                member.dumper.table = table

    # Standing still

    def stop_all(self, stop: Callable[[Member], object]) -> list[Member]:
        """All of them, those included that are born meanwhile; in the order in which they were stopped. Whatever fails,
        those that were stopped are let go."""
        stopped: list[Member] = []
        try:
            while True:
                for member in [each for each in self.all if each not in stopped]:
                    try:
                        stop(member)
                    except (Refused, ProcessEnded, OSError):
                        if member.pid == self._pid or _lives(member.pid):
                            raise
                    else:
                        stopped.append(member)
                self.update(still=True)
                stopped = [member for member in stopped if member in self.all]
                if len(stopped) == len(self.all):
                    return stopped
        except BaseException:
            for member in reversed(stopped):
                with suppress(Failed, OSError):
                    member.resume()
            raise

    def close(self) -> None:
        """Leave no trace in any. Whatever fails, all of it is tried."""
        members, self.members, self.ids = list(self.members.values()), {}, []
        failure: BaseException | None = None
        for member in reversed(members):
            try:
                member.close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure


def mark_of(pid: int) -> Mark:
    """What tells one program of a process from the next: when it was started, and where the kernel put what it was
    started with (the last changes with prctl(PR_SET_MM) too: then it is begun anew for nothing)."""
    with Proc(pid) as proc:
        its = stat(proc.text("stat"))
    if its.state in "ZX":
        raise ProcessLookupError(pid)
    return its.starttime, its.startcode, its.endcode, its.startstack


def _lives(pid: int) -> bool:
    try:
        mark_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not children.ended(pid)

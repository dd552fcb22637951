"""Who is whose child: the processes that move together, and their sessions and process groups.

A tree is the named process and all its descendants, parents before their children. The first of them has no parent
that matters. Numbers are the processes' own, of their PID namespace (NSpid and its kin in proc_pid_status(5)).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from migrate.engine.kernel.fdinfo import fdinfo
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import stat, words
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds import children
from migrate.engine.kinds.terminal import MASTER, SLAVES
from migrate.engine.shares import ACTIONS, ALONE, FILES, FS, MEMORY, Kind, Shares
from migrate.errors import Problem
from migrate.pie.calls import Calls

SIGCHLD = 17
_NAMESPACES = ("pid", "user", "time", "mnt", "net", "ipc", "uts", "cgroup")
_MOST = 1024  # processes in a tree


@dataclass(frozen=True)
class Zombie:
    """A child that has ended and has not been waited for. ``status``: as wait4(2) tells it; ``name``: comm."""

    pid: int
    status: int
    pgrp: int
    session: int
    exit_signal: int
    name: str


@dataclass(frozen=True)
class Kin:
    """``parent``: its position in the tree, -1 for the first. ``exit_signal``: what the parent gets when it ends.
    ``zombies``: children of its that have ended. ``shares``: what it shares with others of the tree. ``terminal``:
    number of its controlling terminal, -1 for none; ``foreground``: process group that is in its foreground;
    ``outside``: somebody else has the master of it."""

    pid: int
    parent: int = -1
    exit_signal: int = SIGCHLD
    pgrp: int = 0
    session: int = 0
    zombies: tuple[Zombie, ...] = ()
    shares: Shares = ALONE
    terminal: int = -1
    foreground: int = 0
    outside: bool = False

    @property
    def single(self) -> bool:
        """Whether one that has no descendants is made by itself: nobody else has to be there, nor anything else."""
        return not self.zombies and self.terminal < 0

    def owns(self, kind: Kind) -> bool:
        """Whether it is the first of those that share it, or the only one that has it."""
        return self.shares.of(kind) in (0, self.pid)


def descendants(pid: int) -> list[int]:
    """``pid`` and all that descends from it and lives, parents first; as we number them. Those that come and go
    meanwhile may be in it or not."""
    found, queue = [pid], [pid]
    while queue:
        try:
            with Proc(queue.pop(0)) as proc:
                born = [each for each in children.seen(proc) if not children.ended(each)]
        except (FileNotFoundError, ProcessLookupError):
            continue
        queue += born
        found += born
    return found


def _zombies(proc: Proc) -> Iterator[Zombie]:
    for pid in children.seen(proc):
        try:
            with Proc(pid) as ended:
                text = ended.text("stat")
                if words(text)[0] == "Z":
                    its = stat(text)
                    own = _own(ended.text("status"))
                    numbers = own("NSpid"), its.exit_code, own("NSpgid"), own("NSsid")
                    yield Zombie(*numbers, its.exit_signal, its.comm)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has been waited for since


def kin_of(proc: Proc, members: Sequence[int]) -> Kin:
    """``members``: of the tree, as we number them. Without `Kin.shares`."""
    numbers, own = words(proc.text("stat")), _own(proc.text("status"))
    above, exit_signal = int(numbers[1]), int(numbers[35])
    parent = members.index(above) if proc.pid != members[0] and above in members else -1
    zombies = tuple(_zombies(proc))
    device, group = int(numbers[4]), int(numbers[5])
    terminal = os.minor(device) if device and os.major(device) == SLAVES else -1
    kin = Kin(own("NSpid"), parent, exit_signal, own("NSpgid"), own("NSsid"), zombies)
    return replace(kin, terminal=terminal, foreground=group, outside=bool(device))


class Terminals:
    """Which controlling terminals are inside. Remembers it for as long as everybody has the one that he had."""

    def __init__(self) -> None:
        self._known: tuple[object, frozenset[int]] = None, frozenset()

    def told(self, processes: Sequence[Proc], tree: Sequence[Kin]) -> list[Kin]:
        """What `kin_of` tells takes every terminal for one that is outside, and its groups as we number them."""
        wanted = {kin.terminal for kin in tree if kin.terminal >= 0}
        if not wanted:
            return list(tree)
        asked = tuple((kin.pid, kin.terminal) for kin in tree)
        if self._known[0] != asked:
            self._known = asked, frozenset(index for proc in processes for index in _masters(proc)) & wanted
        own = {int(words(proc.text("stat"))[2]): kin.pgrp for proc, kin in zip(processes, tree, strict=True)}
        return [self._told(kin, own) for kin in tree]

    def _told(self, kin: Kin, own: Mapping[int, int]) -> Kin:
        if kin.terminal not in self._known[1]:
            return replace(kin, terminal=-1, foreground=0)
        return replace(kin, foreground=own.get(kin.foreground, kin.foreground), outside=False)


def _masters(proc: Proc) -> Iterator[int]:
    """Numbers of the ptys that it has the master of."""
    for name in proc.names("fd"):
        try:
            if proc.link(f"fd/{name}").endswith("/ptmx") and proc.stat(f"fd/{name}").st_rdev == MASTER:
                yield int(fdinfo(proc.text(f"fdinfo/{name}")).one("tty-index"))
        except FileNotFoundError:
            continue


def _own(status: str) -> Callable[[str], int]:
    def last(name: str) -> int:
        start = status.index(f"\n{name}:\t")
        return int(status[start : status.index("\n", start + 1)].rpartition("\t")[2])

    return last


def problems(processes: Sequence[Proc], tree: Sequence[Kin]) -> list[Problem]:
    """Why these processes cannot be moved together. ``tree``: what each is."""
    found = []
    if len(tree) > _MOST:
        return [Problem(f"pid {tree[0].pid}", f"it has more than {_MOST} descendants")]
    for position, (proc, kin) in enumerate(zip(processes, tree, strict=True)):
        where = f"pid {kin.pid}"
        if position and kin.parent < 0:
            found.append(Problem(where, "its parent has just ended", "try again"))
        for name in _NAMESPACES if position else ():
            if _link(proc, f"ns/{name}") != _link(processes[0], f"ns/{name}"):
                found.append(Problem(where, f"it is in another {name} namespace than process {tree[0].pid}"))
    return found


def _link(proc: Proc, name: str) -> str:
    try:
        return proc.link(name)
    except FileNotFoundError:
        return ""  # a kernel without such namespaces


def shared_outside(processes: Sequence[Proc], tree: Sequence[Kin]) -> list[Problem]:
    """What these share with one that stays behind: the parent of the first, or whoever else is in their sessions."""
    stats = [words(proc.text("stat")) for proc in processes]
    ours = {proc.pid for proc in processes}
    others = {int(stats[0][1]), *_in_sessions({int(its[3]) for its in stats})} - ours - {0}
    calls, asked = Calls(), []
    for proc, kin in zip(processes, tree, strict=True):
        for kind in (MEMORY, ACTIONS, FILES, FS):
            calls.add_table(len(others), (NUMBERS["kcmp"], proc.pid, [*others], kind.kcmp))
            asked += [(kin.pid, kind, other) for other in others]
    # Whom we may not look at has not made any of these what it is, and one that has ended shares nothing.
    results = calls.make() if asked else []
    found = [one for one, result in zip(asked, results, strict=True) if result == 0]
    born = {*descendants(processes[0].pid)} if found else set()
    return [
        Problem(f"pid {pid}", f"it shares its {kind.words} with process {other}, which stays behind")
        for pid, kind, other in found
        if other not in born and not children.ended(other)
    ]


def _in_sessions(sessions: Collection[int]) -> Iterator[int]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError), Proc(int(name)) as proc:
            its = words(proc.text("stat"))
            if int(its[3]) in sessions and its[0] not in "ZX":  # what has ended keeps its signal actions for a while
                yield int(name)

"""Who is whose child: the processes that move together, and their sessions and process groups.

A tree is the named process and all its descendants, parents before their children. The first of them has no parent
that matters. Numbers are the processes' own, of their PID namespace (NSpid and its kin in proc_pid_status(5)).

Which session a process is in is decided when it is made: it inherits that of its parent as it is then. So a restoree
that leads a session makes the children that are in its former one first, then calls setsid(2), then makes the others.
Process groups can be joined at any time within a session (setpgid(2)), as long as their leader is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import stat
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds import children
from migrate.errors import Problem
from migrate.pie.calls import Calls

SIGCHLD = 17
_KCMP = ((1, "memory (CLONE_VM)"), (2, "descriptor table (CLONE_FILES)"), (3, "current directory (CLONE_FS)"),
         (4, "signal actions (CLONE_SIGHAND)"))  # fmt: skip
_NAMESPACES = ("pid", "user", "time", "mnt", "net", "ipc", "uts", "cgroup")
_CORE = 0x80  # in a wait status
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
    ``zombies``: children of its that have ended."""

    pid: int
    parent: int = -1
    exit_signal: int = SIGCHLD
    pgrp: int = 0
    session: int = 0
    zombies: tuple[Zombie, ...] = ()


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
                its = stat(ended.text("stat"))
                if its.state == "Z":
                    own = _own(ended.text("status"))
                    numbers = own("NSpid"), its.exit_code, own("NSpgid"), own("NSsid")
                    yield Zombie(*numbers, its.exit_signal, its.comm)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has been waited for since


def kin_of(proc: Proc, members: Sequence[int]) -> Kin:
    """``members``: of the tree, as we number them."""
    numbers, own = stat(proc.text("stat")), _own(proc.text("status"))
    parent = members.index(numbers.ppid) if proc.pid != members[0] and numbers.ppid in members else -1
    zombies = tuple(_zombies(proc))
    return Kin(own("NSpid"), parent, numbers.exit_signal, own("NSpgid"), own("NSsid"), zombies)


def _own(status: str) -> Callable[[str], int]:
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    return lambda name: int(fields[name].split()[-1])


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
    return found + _shared(processes, tree) + standing(tree)


def _link(proc: Proc, name: str) -> str:
    try:
        return proc.link(name)
    except FileNotFoundError:
        return ""  # a kernel without such namespaces


def _shared(processes: Sequence[Proc], tree: Sequence[Kin]) -> list[Problem]:
    """What clone(2) may leave shared between two processes. kcmp(2)."""
    calls, asked = Calls(), []
    for index, one in enumerate(processes):
        for at in range(index):
            calls.add_table(1, *((NUMBERS["kcmp"], processes[at].pid, [one.pid], kind) for kind, _ in _KCMP))
            asked += [(tree[index].pid, tree[at].pid, what) for _, what in _KCMP]
    results = calls.make() if asked else []
    return [
        Problem(f"pid {pid}", f"it shares its {what} with process {other}")
        for (pid, other, what), result in zip(asked, results, strict=True)
        if result == 0
    ]


def standing(tree: Sequence[Kin]) -> list[Problem]:
    """Sessions and process groups that could not be made again."""
    root, pids, dead = tree[0], {kin.pid for kin in tree}, {each.pid for kin in tree for each in kin.zombies}
    found = [problem for kin in tree for each in kin.zombies for problem in _unmakable(kin, each)]
    for position, kin in enumerate(tree):
        if position and kin.session not in pids and kin.session != root.session:
            found.append(Problem(f"pid {kin.pid}", f"the leader of its session {kin.session} is not among them"))
        elif position and kin.pgrp not in pids | dead and kin.pgrp != root.pgrp and _exists(kin.pgrp):
            found.append(Problem(f"pid {kin.pid}", f"the leader of its process group {kin.pgrp} is not among them"))
        elif position and not _inherits(tree, position):
            found.append(Problem(f"pid {kin.pid}", f"it is in session {kin.session}, and its parent never was"))
    return found


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _unmakable(kin: Kin, zombie: Zombie) -> list[Problem]:
    where = f"pid {zombie.pid}"
    if zombie.exit_signal != SIGCHLD:
        return [Problem(where, f"it has ended, and its parent gets signal {zombie.exit_signal} for it", "wait for it")]
    if zombie.status & _CORE:
        return [Problem(where, "it has ended with a core dump", "wait for it (waitpid(2))")]
    if zombie.session not in (kin.session, zombie.pid):
        return [Problem(where, "it has ended, and was in another session than its parent", "wait for it")]
    return []


def outside(tree: Sequence[Kin]) -> int:
    """The process group that those get whose own stays behind: that of the first."""
    return tree[0].pid


# How it is made again


def before_setsid(tree: Sequence[Kin], position: int) -> bool:
    """Whether it is made before its parent leads its session."""
    parent = tree[tree[position].parent]
    needed = _needed(tree, position)
    return parent.session == parent.pid and needed is not None and needed != parent.pid


def _needed(tree: Sequence[Kin], position: int) -> int | None:
    """The session that it must be made in; None: any."""
    kin = tree[position]
    if kin.session != kin.pid:
        return kin.session
    for child, each in enumerate(tree):
        if each.parent == position:
            needed = _needed(tree, child)
            if needed is not None and needed != kin.pid:
                return needed
    return None


def _inherits(tree: Sequence[Kin], position: int) -> bool:
    """Whether its parent is, at one time, in the session that it needs."""
    needed, above = _needed(tree, position), tree[position].parent
    if needed is None or above < 0:
        return True
    parent = tree[above]
    leads = parent.session == parent.pid and above > 0  # the first of them never was in another one of theirs
    return needed == parent.session or (leads and _needed(tree, above) == needed)


def groups(tree: Sequence[Kin]) -> list[int]:
    """The process group of each, by number; 0: it stays in that which setsid(2) gave it."""
    return [0 if kin.session == kin.pid else group(tree, kin.pgrp) for kin in tree]


def group(tree: Sequence[Kin], pgrp: int) -> int:
    """What becomes of a group: that of the first stays behind, where its leader is none of them."""
    mine = {number for kin in tree for number in (kin.pid, *(each.pid for each in kin.zombies))}
    return outside(tree) if pgrp == tree[0].pgrp and pgrp not in mine else pgrp


def ghosts(tree: Sequence[Kin]) -> list[tuple[int, int]]:
    """Groups whose leader is gone: a position from where it can be made, and its number."""
    mine = {number for kin in tree for number in (kin.pid, *(each.pid for each in kin.zombies))}
    found: dict[int, int] = {}
    for position, number in enumerate(groups(tree)):
        if number and number not in mine:
            found.setdefault(number, position)
    return [(position, number) for number, position in found.items()]


def numbers(tree: Sequence[Kin]) -> set[int]:
    """All that must be free, besides those of threads."""
    return {each.pid for kin in tree for each in kin.zombies} | {number for _, number in ghosts(tree)}

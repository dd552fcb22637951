"""Namespaces that a process does not share with us: what would be lost with them is refused by name (namespaces(7)).

Not refused are those that are made again: another PID namespace, in which it gets its numbers, another time namespace,
of which its clocks are, another UTS namespace (`migrate.engine.hostname`), and another IPC namespace in which nobody
stays behind (`migrate.engine.ipc`). A mount namespace is only refused where it shows something that ours does not.
"""

from __future__ import annotations

import os
from pathlib import Path

from migrate.engine.kernel.mountinfo import mountinfo
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.status import status
from migrate.engine.kinds.terminal import DIRECTORY
from migrate.errors import Problem

_WORDS = {
    "user": "a user", "uts": "a UTS", "ipc": "an IPC", "net": "a network", "cgroup": "a cgroup", "mnt": "a mount",
}  # fmt: skip
_LOST = {
    "user": "its users and capabilities are others there",
    "net": "it has network devices of its own there",
    "cgroup": "it has a cgroup root of its own there",
}
_ADVICE = "run migrate inside of it (nsenter(1)), where it can be left behind"
_FOR_CHILDREN = {"pid_for_children": ("pid", "PID"), "time_for_children": ("time", "time")}
_MOST = 4  # mounts that are named


def problems(proc: Proc, where: str) -> list[Problem]:
    """Why a process, all of whose threads are looked at, cannot leave the namespaces that it is in. ``where``: "pid
    812"."""
    found = []
    for name, lost in _LOST.items():
        if (theirs := link(proc, name)) != _ours(name):
            what = f"is in {_WORDS[name]} namespace ({theirs}) that is not ours: {lost}"
            found.append(Problem(where, what, _ADVICE))
    found += _mounts(proc, where)
    for name, (own, word) in _FOR_CHILDREN.items():
        if link(proc, own) and link(proc, name) != link(proc, own):
            what = f"its next child would be in another {word} namespace than itself (unshare(2))"
            found.append(Problem(where, what))
    if status(proc.text("status")).ns_pid[-1] == 1:
        found.append(Problem(where, "is the init of a PID namespace, which dies with it", "move what it has started"))
    return found + _threads(proc)


def link(proc: Proc, name: str) -> str:
    """``net:[4026531840]``; empty for a kernel without such namespaces."""
    try:
        return proc.link(f"ns/{name}")
    except FileNotFoundError:
        return ""


def _ours(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{name}")
    except FileNotFoundError:
        return ""


def _mounts(proc: Proc, where: str) -> list[Problem]:
    """What a mount namespace of its own shows that ours does not, but for what is made again with a PID namespace of
    its own: /proc, and the directory of its terminals."""
    if link(proc, "mnt") == _ours("mnt"):
        return []
    own_numbers = link(proc, "pid") != _ours("pid")
    here = {(m.point, m.major, m.minor) for m in mountinfo(Path("/proc/self/mountinfo").read_text())}
    more = [
        m.point
        for m in mountinfo(proc.text("mountinfo"))
        if (m.point, m.major, m.minor) not in here
        and not (own_numbers and (m.fstype == "proc" or (m.fstype, m.point) == ("devpts", DIRECTORY)))
    ]
    if not more:
        return []
    named = ", ".join(dict.fromkeys(more[:_MOST])) + (" and others" if len(more) > _MOST else "")
    what = f"is in a mount namespace ({link(proc, 'mnt')}) that is not ours, where {named} is mounted"
    return [Problem(where, what, _ADVICE)]


def _threads(proc: Proc) -> list[Problem]:
    """A thread may have left a namespace that the others are in (setns(2), unshare(2))."""
    found = []
    together = {name: link(proc, name) for name in _WORDS}
    for tid in proc.tids():
        try:
            with proc.thread(tid) as thread:
                alone = [word for name, word in _WORDS.items() if link(thread, name) != together[name]]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        for word in alone if tid != proc.pid else ():
            found.append(Problem(f"thread {tid}", f"is in {word} namespace of its own"))
    return found

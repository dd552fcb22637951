"""The disasters: how each is inflicted on a move that is under way, and how it is undone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agents import journal
from tests.chaos.plan import Blow
from tests.chaos.resources import Descriptors, Disk, Limit
from tests.hosts import Host
from tests.leaks import descendants
from tests.migration.launcher import Run
from tests.tasks import children, status_field

_HALT = 1.0  # seconds for a process to stop
_NOTHING = "1kbit"  # a packet takes longer than anybody waits
_NO_MEMORY = 24 << 20  # bytes that are left at most: the agent takes half of it
_NO_PIDS, _NO_DESCRIPTORS = 4, 12


class NotThere(Exception):
    """Who is to be hit is not there, yet or any more."""


class TooLate(Exception):
    """It would end the process, which has moved."""


@dataclass
class Node:
    """A host with what can be taken from it."""

    host: Host
    journals: Disk
    disks: tuple[Disk, ...]
    limits: Mapping[str, Limit]

    @property
    def listener(self) -> int:
        """Our number of the sshd that takes connections."""
        for pid in children(self.host.init):
            if status_field(pid, "Name") == ["sshd"] and _words(pid).startswith(b"sshd: /"):
                return pid
        raise NotThere("sshd")

    @property
    def sessions(self) -> list[int]:
        """Our numbers of the sshds of connections, and of what logs in."""
        try:
            found = descendants(self.listener)
        except NotThere:
            found = []
        orphans = [pid for pid in children(self.host.init) if not _words(pid).startswith(b"sshd: /")]
        return [pid for pid in (*found, *orphans) if status_field(pid, "Name") == ["sshd"]]

    def find(self, wanted: Callable[[bytes], bool]) -> int:
        """Our number of the process with such a command line."""
        for pid in descendants(self.host.init):
            if status_field(pid, "Name") != ["sshd"] and wanted(_words(pid)):
                return pid
        raise NotThere

    @property
    def agent(self) -> int:
        return self.find(lambda words: b"migrate-ready" in words)

    @property
    def overseer(self) -> int:
        return self.find(lambda words: words == b"migrate-overseer\0")

    def states(self) -> list[str]:
        """Of the newest journal of a destination here, record by record."""
        directory = self.journals.path / "migrate" / "journal"
        files = sorted(directory.glob("*.destination")) if directory.is_dir() else []
        return [record.state for record in journal.parse(files[-1].read_bytes(), "")[0]] if files else []


@dataclass
class Scene:
    """A move that is under way."""

    run: Run
    here: Node
    there: Node
    undo: list[Callable[[], None]] = field(default_factory=list)


class Disaster(Protocol):
    """Raises NotThere when it is to be tried again, and TooLate. What it needs for its end it leaves in
    ``scene.undo``."""

    def __call__(self, scene: Scene, blow: Blow) -> None: ...


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# Deaths


def _coordinator(scene: Scene, blow: Blow) -> None:
    _kill(scene.run.outer)


def _source_agent(scene: Scene, blow: Blow) -> None:
    agents = scene.run.agents
    if not agents:
        raise NotThere
    _kill(agents[0])


def _destination_agent(scene: Scene, blow: Blow) -> None:
    _kill(scene.there.agent)


def _overseer(scene: Scene, blow: Blow) -> None:
    overseer = scene.there.overseer
    with _Still(overseer):
        if len(status_field(overseer, "NSpid")) > 2 and _let_go(scene.there):
            raise TooLate  # it is pid 1 of the process's PID namespace
        _kill(overseer)


def _restoree(scene: Scene, blow: Blow) -> None:
    overseer = scene.there.overseer
    with _Still(overseer):
        restorees = children(overseer)
        if _let_go(scene.there):
            raise TooLate
        if not restorees:
            raise NotThere
        _kill(restorees[0])


def _let_go(node: Node) -> bool:
    """Whether the process may have been let go there; its overseer stands still."""
    return node.states()[-1:] in ([journal.RELEASING], [journal.RELEASED])


class _Still:
    """An overseer that does not get any further while it is looked what it has done. NotThere: it is gone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> None:
        end = time.monotonic() + _HALT
        try:
            os.kill(self._pid, signal.SIGSTOP)
        except ProcessLookupError:
            raise NotThere from None
        while status_field(self._pid, "State")[:1] not in (["T"], ["Z"], []):
            assert time.monotonic() < end, f"the overseer, {self._pid}, does not stop"
            time.sleep(0.0002)

    def __exit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


def _session(scene: Scene, blow: Blow) -> None:
    sessions = scene.there.sessions
    if not sessions:
        raise NotThere
    _kill(sessions[int(blow.luck * len(sessions))])


def _sshd(scene: Scene, blow: Blow) -> None:
    """The one that listens, and with it sometimes all others."""
    sessions = scene.there.sessions
    _kill(scene.there.listener)
    for pid in sessions if blow.luck < 0.5 else ():
        _kill(pid)


# The network


def _either(scene: Scene, blow: Blow) -> Host:
    return (scene.here if blow.luck < 0.5 else scene.there).host


def _link_down(scene: Scene, blow: Blow) -> None:
    host = _either(scene, blow)
    scene.undo.append(host.link_up)
    host.link_down()


def _throttled(scene: Scene, blow: Blow) -> None:
    """What this side says is not heard; what the other one says is."""
    host = _either(scene, blow)
    scene.undo.append(host.unthrottle)
    queue = ("root", "tbf", "rate", _NOTHING, "burst", "1600", "limit", "3200")
    host.run(["tc", "qdisc", "replace", "dev", "eth0", *queue])


# What runs out


def _fill(scene: Scene, *disks: Disk) -> None:
    for disk in disks:
        scene.undo.append(disk.drain)
        disk.fill()


def _disk(scene: Scene, blow: Blow) -> None:
    _fill(scene, *scene.there.disks)


def _journal(scene: Scene, blow: Blow) -> None:
    _fill(scene, scene.there.journals)


def _journal_here(scene: Scene, blow: Blow) -> None:
    _fill(scene, scene.here.journals)


def _memory(scene: Scene, blow: Blow) -> None:
    limit = scene.there.limits["memory"]
    scene.undo.append(limit.give_back)
    limit.take(int(blow.luck * _NO_MEMORY))


def _pids(scene: Scene, blow: Blow) -> None:
    limit = scene.there.limits["pids"]
    scene.undo.append(limit.give_back)
    limit.take(int(blow.luck * _NO_PIDS))


def _descriptors(scene: Scene, blow: Blow) -> None:
    """Of the agent, or of the sshd that it comes from."""
    try:
        pid = scene.there.agent
    except NotThere:
        pid = scene.there.listener
    try:
        scene.undo.append(Descriptors(pid, int(blow.luck * _NO_DESCRIPTORS)).give_back)
    except (ProcessLookupError, FileNotFoundError):
        raise NotThere from None


DISASTERS: dict[str, Disaster] = {
    "coordinator": _coordinator,
    "source agent": _source_agent,
    "destination agent": _destination_agent,
    "overseer": _overseer,
    "restoree": _restoree,
    "sshd session": _session,
    "sshd": _sshd,
    "link down": _link_down,
    "throttled to nothing": _throttled,
    "disk full": _disk,
    "journal's disk full": _journal,
    "journal's disk full here": _journal_here,
    "no memory": _memory,
    "no PIDs": _pids,
    "no descriptors": _descriptors,
}

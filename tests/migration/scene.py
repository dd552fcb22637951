"""What must be true after a migration that came to nothing: the process runs on as if nothing had happened, and nothing
of it is on the destination."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from migrate.engine.overseer import Records, release
from migrate.engine.program import Program
from migrate.engine.tracee.area import areas
from migrate.engine.tracee.memory import Memory
from tests import observe
from tests.hosts import Host, Pair
from tests.migration.journey import Journey, Journeys
from tests.migration.launcher import PATIENT, Hold, Launcher, Result, Run
from tests.tasks import children, status_field, wait_until

POINTS = (
    *("connected", "preflight", "created", "tracked", "round", "rehearsed"),
    *("frozen", "sent", "restored", "before-commit", "halted"),
)
"""Of migrate.faults, before COMMIT is sent."""
FROZEN = POINTS[POINTS.index("frozen") :]
# Where the counting thread has come to.
MOVING = (r"fd \d+ pos",)


@dataclass
class Scene:
    """A process on node1 that notices what is done to it, and two hosts before anything has happened."""

    pair: Pair
    journey: Journey

    def __post_init__(self) -> None:
        """Remember how things are."""
        self.before = observe.snapshot(self.journey.task.outer)
        self.there = self.pair.b.pids()
        self.logs = logs(self.pair.b)
        self.mounts = mounts(self.pair.b)

    def runs_on(self) -> None:
        """An AssertionError unless it does, and nobody holds it."""
        self.journey.must_live()
        outer = self.journey.task.outer
        wait_until("the process let go", lambda: status_field(outer, "TracerPid") == ["0"])
        wait_until("the process running", lambda: not states(outer) & {"T", "t"})

    def untouched(self) -> None:
        """An AssertionError says what is not as it was."""
        self.runs_on()
        outer = self.journey.task.outer
        wait_until("the destination clean", lambda: self.pair.b.pids() == self.there, 20)
        assert not left_in(outer), "a parasite was left in the process"
        assert logs(self.pair.b) == self.logs, "a log was left on the destination"
        assert mounts(self.pair.b) == self.mounts, "a mount was left on the destination"
        self._same(outer)
        counted(self.journey)

    def _same(self, outer: int) -> None:
        """Some of what can be seen is seen only while a thread sleeps, and those may still be on their way back into
        the calls that they were in: sigtimedwait(2) changes the mask, for one."""
        end = time.monotonic() + 2
        while different := observe.compare(self.before, observe.snapshot(outer), MOVING):
            assert time.monotonic() < end, "\n".join(["the process is not what it was:", *different])

    def passes(self) -> None:
        """At the end the process says itself that it has noticed nothing."""
        self.journey.tell()
        self.journey.verdict()
        counted(self.journey)

    # Who can be killed

    @property
    def overseer(self) -> int:
        """Our number of the overseer."""
        return self._there(lambda pid: Path(f"/proc/{pid}/cmdline").read_bytes() == b"migrate-overseer\0")

    @property
    def restoree(self) -> int:
        """Our number of the process as it is on the destination."""
        return children(self.overseer)[0]

    @property
    def agent(self) -> int:
        """Our number of the destination agent."""
        return self._there(lambda pid: b"migrate-ready" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def _there(self, wanted: object) -> int:
        assert callable(wanted)
        for pid in self.pair.b.outer_pids():
            if wanted(pid) and not status_field(pid, "Name") == ["sshd"]:
                return pid
        raise ProcessLookupError("not on the destination")


def commit(outer: int) -> tuple[Program, int]:
    """The program of the commit of such a process, to count its ops; and how many of them can be revoked."""
    tids = [int(name) for name in os.listdir(f"/proc/{outer}/task")]
    return release(outer, tids, stopped=False, stay=False, records=Records(b"", b"", b""))


def states(outer: int) -> set[str]:
    """The state letters of its threads."""
    stats = [(path / "stat").read_text() for path in Path(f"/proc/{outer}/task").iterdir()]
    return {text.rpartition(")")[2].split()[0] for text in stats}


def left_in(outer: int) -> list[tuple[int, int]]:
    """Areas of a parasite."""
    memory = Memory(outer)
    try:
        return [(int(address), size) for address, size in areas(memory)]
    finally:
        memory.close()


def logs(host: Host) -> list[Path]:
    """Logs of standard streams on a host."""
    return list(host.state.rglob("*.log*"))


def mounts(host: Host) -> str:
    """Of the host's own mount namespace."""
    return Path(f"/proc/{host.init}/mountinfo").read_text()


def counted(journey: Journey) -> None:
    """An AssertionError when a line is missing or there twice: each is an effect outside the process."""
    lines = (journey.directory / "count").read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # it is being written
    for number, line in enumerate(lines):
        assert line.split()[-1:] == [str(number)], f"{line!r} after {number} lines"


@dataclass
class Stage(Scene):
    """A scene, and the means to make something happen."""

    launcher: Launcher
    directory: Path

    @property
    def command(self) -> tuple[str, ...]:
        """Moves it to node2."""
        return ("--json", *PATIENT, str(self.journey.task.pid), self.pair.b.destination)

    def attempt(self, fault: str) -> Result:
        """A migration with a fault, to its end."""
        return self.launcher.start(*self.command, fault=fault).wait()

    def recover(self, *arguments: str) -> Result:
        """`migrate recover`, to its end."""
        return self.launcher.start("--json", "recover", *arguments).wait()

    def hold(self, point: str, *more: str, fault: str = "") -> tuple[Hold, Run]:
        """Start a migration and wait until it has come to a point, where it stays. ``more``: options; ``fault``: others
        besides."""
        hold = Hold(self.directory, point)
        run = self.launcher.start(*more, *self.command, fault=",".join(filter(None, (hold.fault, fault))))
        hold.reached(run)
        return hold, run


@contextmanager
def staged(journeys: Journeys, launcher: Launcher, directory: Path) -> Iterator[Stage]:
    """The victim "undisturbed" on node1, looked at; asked at the end."""
    made = Stage(journeys.pair, journeys.start("undisturbed"), launcher, directory)
    yield made
    made.passes()


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)

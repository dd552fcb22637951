"""Ctrl-C and its kin: before the commit all is as if nothing had happened, after it the process has moved."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from migrate import faults
from tests.hosts import Command
from tests.migration.launcher import Hold
from tests.migration.scene import POINTS, Stage
from tests.moves import PROGRAM
from tests.tasks import wait_until

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize(
    ("number", "points"), [(signal.SIGINT, POINTS), (signal.SIGTERM, POINTS[::3]), (signal.SIGHUP, POINTS[1::3])]
)
def test_at_every_phase_before_the_commit(stage: Stage, number: int, points: tuple[str, ...]) -> None:
    for point in points:
        hold, run = stage.hold(point)
        run.signal(number)
        result = run.wait()
        hold.release()
        assert result.code == 130 and "interrupted and rolled back" in result.report["error"], (point, result)
        assert "warning" not in result.err, (point, result)
        stage.untouched()


@pytest.mark.parametrize("number", NUMBERS)
def test_committed_is_committed(stage: Stage, number: int) -> None:
    """COMMIT is on its way and its answer is not here yet: it is too late."""
    hold, run = stage.hold("halted")
    agent = stage.agent
    os.kill(agent, signal.SIGSTOP)
    hold.release()
    wait_until("COMMIT sent", lambda: unread(agent))
    run.signal(number)
    wait_until("the signal taken", lambda: "rolling back" in run.err)
    os.kill(agent, signal.SIGCONT)
    result = run.wait()
    assert result.code == 0 and result.report["ok"], result
    assert not stage.journey.task.alive
    stage.journey.task = stage.pair.b.adopt(result.report["new_pid"])


def unread(pid: int) -> int:
    """Bytes that wait on its standard input."""
    pipe = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")
    finally:
        os.close(pipe)


# At a terminal


@dataclass
class Terminal:
    """A terminal on node1 in which a migration runs."""

    master: int
    command: Command
    shown: str = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Wait for the command; its exit code."""
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other end open any more, pty(7)
                break
            self.shown += data.decode(errors="replace")
        return self.command.wait(20)


@contextmanager
def terminal(stage: Stage, hold: Hold) -> Iterator[Terminal]:
    """The command in the foreground of a terminal of its own, come to a point."""
    master, slave = os.openpty()
    argv = ["setsid", "--ctty", PROGRAM, "-F", str(stage.pair.a.ssh_config), *stage.command[1:]]
    env = {faults.VARIABLE: hold.fault, "TERM": "xterm"}
    with stage.pair.a.popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env) as command:
        os.close(slave)
        try:
            wait_until(f"{hold.point} reached", lambda: hold.path.exists() or command.poll() is not None, 30)
            yield Terminal(master, command)
        finally:
            if command.poll() is None:
                command.kill()
            os.close(master)


@pytest.mark.parametrize("point", ["connected", "round", "frozen", "halted"])
def test_control_c_at_a_terminal(stage: Stage, point: str) -> None:
    hold = Hold(stage.directory, point)
    with terminal(stage, hold) as tty:
        tty.type("\x03")
        code = tty.end()
    hold.release()
    assert code == 130 and "interrupted and rolled back" in tty.shown, (code, tty.shown)
    stage.untouched()


def test_the_terminal_is_closed(stage: Stage) -> None:
    """As when its window is, or the connection to the machine that it is on breaks."""
    hold = Hold(stage.directory, "round")
    with terminal(stage, hold) as tty:
        closed = os.open("/dev/null", os.O_RDONLY)
        os.dup2(closed, tty.master)
        os.close(closed)
        assert tty.command.wait(20) == 130
    hold.release()
    stage.untouched()

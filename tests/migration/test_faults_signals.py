"""Ctrl-C and its kin: before the commit all is as if nothing had happened, after it the process has moved."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from migrate import faults
from tests.migration.launcher import Hold
from tests.migration.scene import POINTS, Stage
from tests.migration.terminal import Terminal, terminal
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
    wait_until("the signal taken", lambda: "too late to roll back" in run.err)
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


@contextmanager
def at(stage: Stage, point: str) -> Iterator[Terminal]:
    """The command at a terminal, come to a point."""
    hold = Hold(stage.directory, point)
    argv = [PROGRAM, "-F", str(stage.pair.a.ssh_config), *stage.command[1:]]
    with terminal(stage.pair.a, argv, {faults.VARIABLE: hold.fault}) as made:
        wait_until(f"{point} reached", lambda: hold.path.exists() or made.command.poll() is not None, 30)
        yield made
    hold.release()


@pytest.mark.parametrize("point", ["connected", "round", "frozen", "halted"])
def test_control_c_at_a_terminal(stage: Stage, point: str) -> None:
    with at(stage, point) as tty:
        tty.type("\x03")
        assert tty.command.wait(20) == 130
        tty.wait_shown("interrupted and rolled back")
    stage.untouched()


def test_the_terminal_is_closed(stage: Stage) -> None:
    with at(stage, "round") as tty:
        tty.close()
        assert tty.command.wait(20) == 130
    stage.untouched()

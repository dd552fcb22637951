"""A process moves together with its children."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests import moves
from tests.hosts import Pair
from tests.tasks import children, wait_until


def test_a_shell_that_waits_for_its_command(two_hosts: Pair) -> None:
    done = two_hosts.directory / "done"
    task = two_hosts.a.spawn(["sh", "-c", f"sleep 1000; echo $? > {done}; exit 7"])
    wait_until("its child", lambda: bool(children(task.outer)))
    child = two_hosts.a.inner_pid(children(task.outer)[0])
    moved, outcome = moves.move(two_hosts, task)
    (there,) = children(moved.outer)
    assert two_hosts.b.inner_pid(there) == child, outcome.err
    assert Path(f"/proc/{there}/comm").read_text() == "sleep\n"
    os.kill(there, signal.SIGTERM)
    moved.wait_gone()
    assert done.read_text() == f"{128 + signal.SIGTERM}\n"

"""A process that has children stays with them."""

from __future__ import annotations

from tests import moves
from tests.hosts import Pair
from tests.tasks import children, wait_until


def test_a_shell_that_waits_for_its_command(two_hosts: Pair) -> None:
    task = two_hosts.a.spawn(["sh", "-c", "sleep 1000; exit 0"])
    wait_until("its child", lambda: bool(children(task.outer)))
    child = two_hosts.a.adopt(two_hosts.a.inner_pid(children(task.outer)[0])).pid
    outcome = moves.finish(moves.start(two_hosts.a, task.pid, two_hosts.b.destination))
    assert outcome.code == 3 and task.alive, outcome.err
    assert f"pid {task.pid}: it has children ({child})" in outcome.err

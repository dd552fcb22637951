"""Memory that a process shares with one that stays behind cannot be moved with it."""

from __future__ import annotations

import sys

from tests import moves
from tests.hosts import Pair
from tests.tasks import Task, children, wait_until

PARENT = """
import mmap, os, time
memory = mmap.mmap(-1, 4096)
if os.fork():
    time.sleep(1000)
os.setsid()
time.sleep(1000)
"""


def test_memory_shared_with_a_parent_is_refused(two_hosts: Pair) -> None:
    parent = two_hosts.a.spawn([sys.executable, "-c", PARENT])
    wait_until("the child", lambda: len(children(parent.outer)) == 1)
    outer = children(parent.outer)[0]
    child = Task(outer, two_hosts.a.inner_pid(outer))
    try:
        outcome = moves.finish(moves.start(two_hosts.a, child.pid, two_hosts.b.destination))
        assert outcome.code == 3
        assert f"shared memory that process {parent.pid} has mapped too" in outcome.report["error"]
        assert child.alive
    finally:
        child.kill()
        child.close()

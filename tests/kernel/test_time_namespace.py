"""A time namespace with offsets of its own, or the reason why there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRY = """
import subprocess, time
from migrate.engine.clocks import enter_time_namespace
from migrate.engine.kernel.timens import Offsets
from migrate.engine.program import Program
from migrate.pie.local import run
program = Program("clocks")
reason = enter_time_namespace(program, Offsets(5_000_000_000_123, -1_000_000_001))
results = run(program.link())
assert results.failed is None
print(reason(results))
clock = "import time; print(time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(time.CLOCK_BOOTTIME))"
before = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
child = subprocess.run(["/usr/bin/python3", "-c", clock], capture_output=True, text=True, check=True).stdout
print(*(int(now) - then for now, then in zip(child.split(), before)))
"""


def attempt(*wrap: str) -> tuple[str, int, int]:
    """The reason, and by how many seconds the clocks of a child are ahead."""
    done = subprocess.run([*wrap, sys.executable, "-c", TRY], capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    reason, ahead = done.stdout.splitlines()
    monotonic, boottime = map(int, ahead.split())
    return reason, monotonic // 10**9, boottime // 10**9


def test_the_clocks_of_children_are_ahead() -> None:
    reason, monotonic, boottime = attempt()
    assert not reason
    assert 5000 <= monotonic < 5060 and -2 <= boottime < 58


@pytest.mark.parametrize(
    ("capability", "why"),
    [
        ("sys_admin", "unshare: Operation not permitted"),
        ("sys_time", "write to /proc/self/timens_offsets: Operation not permitted"),
    ],
)
def test_without_the_right_to_it_is_said_why(capability: str, why: str) -> None:
    """As root in a container mostly is."""
    reason, monotonic, boottime = attempt("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")
    assert reason == why
    assert 0 <= monotonic < 60 and 0 <= boottime < 60

"""Tests of this machine's kernel, run on the others: the trackers' conformance, and moves within one guest."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crosskernel.guests import Topology
from tests.crosskernel.kernels import SUITES
from tests.kernel.features import ABSENT

CHECKOUT = Path(__file__).parents[2]
TRACKERS = {"5.10": {"soft-dirty"}, "6.1": {"soft-dirty"}}
"""What each kernel has besides digests; newer ones have all."""
ALL = {"soft-dirty", "write-protect", "write-protect, small areas walked alone"}
TESTS = ("tests/kernel/test_trackers_conformance.py", "tests/kernel/test_trackers_areas.py")
CONFORMANCE = "not ten_thousand and not (whatever and (2] or 3] or 4] or 5]))"
"""All of it, but for what has nothing to do with the kernel, and four of six random sequences: they take minutes
there."""
MOVES = (
    "test_moves_threads.py", "test_moves_memory.py", "test_moves_descriptors.py", "test_moves_state.py",
    "test_shared_memory.py",
)  # fmt: skip

def run_there(world: Topology, kernel: str, *arguments: str) -> str:
    """Run pytest in a guest, and return what it said; AssertionError unless all has passed but for what the kernel
    does not have."""
    world.need(kernel)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-v", *arguments]
    # the checkout is read-only there
    env = {"MIGRATE_TEST_PATIENCE": "15", "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"}
    done = world[kernel].run(command, cwd=str(CHECKOUT), timeout=7000, check=False, env=env)
    said = done.stdout[-20000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    for reason in re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", done.stdout, re.MULTILINE):
        assert reason.startswith(ABSENT), said
    return done.stdout


@pytest.mark.every_kernel
@pytest.mark.timeout(1800)
def test_trackers(world: Topology) -> None:
    """On all kernels, as many at once as this machine has cores for."""
    world.need(*SUITES)

    def conformance(kernel: str) -> set[str]:
        said = run_there(world, kernel, *TESTS, "-k", CONFORMANCE)
        return set(re.findall(r"test_written_pages_and_no_others\[(.*?)\] PASSED", said))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ran = dict(zip(SUITES, pool.map(conformance, SUITES), strict=True))
    assert ran == {kernel: {"digests"} | TRACKERS.get(kernel, ALL) for kernel in SUITES}


@pytest.mark.within_kernels
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kernel", SUITES)
def test_moves(world: Topology, kernel: str) -> None:
    run_there(world, kernel, *(f"tests/migration/{name}" for name in MOVES))

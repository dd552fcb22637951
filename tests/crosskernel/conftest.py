"""What the tests across kernels share: the endpoints, which stay up from the first test to the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests import leaks
from tests.crosskernel.guests import Topology, topology
from tests.crosskernel.travels import MOVED, Travels
from tests.victims import Victims


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was moved, what was decided, and how long it took: nothing of that is a test on machines like these."""
    if MOVED:
        terminalreporter.section("moves between kernels")
        for line in MOVED:
            terminalreporter.write_line(line)


@pytest.fixture(scope="package")
def endpoints() -> Iterator[Topology]:
    """The host and its guests, for the tests of this directory; take `world`, which cleans up between tests."""
    before = leaks.take()
    with topology() as found:
        yield found
    # qemu and virtiofsd, taps and bridges (which go with the host's network namespace), the test bed's directory
    before = replace(before, threads=leaks.take().threads)  # pytest's watchdog is another one in every test
    left = [*leaks.settle(before), *([str(found.directory)] if found.directory.exists() else [])]
    leaks.kill_new(before)
    assert not left, "left behind:\n  " + "\n  ".join(left)


@pytest.fixture
def world(endpoints: Topology) -> Iterator[Topology]:
    """Endpoints; what the test started or adopted there is killed at its end, and what else is left fails it."""
    yield endpoints
    left = endpoints.finish()
    assert not left, "left behind:\n  " + "\n  ".join(left)


@pytest.fixture
def travels(world: Topology, victims: Victims) -> Travels:
    """Starts victims on any endpoint, to be moved to others."""
    return Travels(world, victims)

"""What the tests across kernels share: the endpoints, which stay up from the first test to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests import leaks
from tests.conftest import MOVE
from tests.crosskernel.guests import Topology, topology
from tests.crosskernel.travels import Travels
from tests.victims import Victims


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
def travels(
    world: Topology, victims: Victims, record_property: Callable[[str, object], None]
) -> Iterator[Travels]:
    """Starts victims on any endpoint, to be moved to others; what is to be told of the moves is told at the end."""
    made = Travels(world, victims)
    yield made
    for line in made.moved:
        record_property(MOVE, line)

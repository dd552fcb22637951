"""What the tests of whole migrations share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Pair
from tests.migration.journey import Journeys
from tests.migration.launcher import Launcher, launcher
from tests.migration.scene import Stage, staged
from tests.victims import Victims


@pytest.fixture
def journeys(two_hosts: Pair, victims: Victims) -> Journeys:
    """Starts victims on node1, to be moved to node2."""
    return Journeys(two_hosts, victims)


@pytest.fixture(scope="module")
def start(hosts: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts migrations on node1."""
    with launcher(hosts.a, tmp_path_factory.mktemp("runs")) as made:
        yield made


@pytest.fixture
def stage(journeys: Journeys, start: Launcher, tmp_path: Path) -> Iterator[Stage]:
    """A process that notices everything; it is asked at the end."""
    with staged(journeys, start, tmp_path) as made:
        yield made

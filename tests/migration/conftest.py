"""What the tests of whole migrations share."""

from __future__ import annotations

import pytest

from tests.hosts import Pair
from tests.migration.journey import Journeys
from tests.victims import Victims


@pytest.fixture
def journeys(two_hosts: Pair, victims: Victims) -> Journeys:
    """Starts victims on node1, to be moved to node2."""
    return Journeys(two_hosts, victims)

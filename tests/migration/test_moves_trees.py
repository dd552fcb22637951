"""A process moves with all its descendants."""

from __future__ import annotations

from tests.migration.journey import Journeys


def test_a_family(journeys: Journeys) -> None:
    journeys.start("family").go()

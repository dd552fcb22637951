"""A process moves with all its descendants."""

from __future__ import annotations

import pytest

from tests.migration.journey import Journeys


@pytest.mark.parametrize("victim", ["family", "shares", "kinfolk"])
def test_they_notice_nothing(journeys: Journeys, victim: str) -> None:
    journeys.start(victim, wrap=["setsid"] if victim == "kinfolk" else []).go()

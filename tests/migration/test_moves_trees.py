"""A process moves with all its descendants."""

from __future__ import annotations

import pytest

from tests.migration.journey import Journeys


@pytest.mark.parametrize("victim", ["family", "shares", "kinfolk", "adopted"])
def test_they_notice_nothing(journeys: Journeys, victim: str) -> None:
    # A timer goes off on the way, or not.
    journeys.start(victim).go(ignore=[r"fd \d+ ticks"])


@pytest.mark.parametrize(("victim", "how"), [("commons", "fdiu"), ("lodgers", "sfdt"), ("lodgers", "")])
def test_they_share(journeys: Journeys, victim: str, how: str) -> None:
    """What clone(2) lets them share."""
    journeys.start(victim, how).go()


def test_processes_come_and_go(journeys: Journeys) -> None:
    """They fork, execute programs and end all the time; they are followed."""
    journey = journeys.start("restless")
    journey.move("--no-converge", "continue", look=False)
    journey.tell()
    journey.verdict(60)

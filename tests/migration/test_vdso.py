"""The vDSO on its way: the same, another one, none. The two hosts have one kernel, so another one is pretended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import Pair
from tests.migration.journey import Journey, Journeys

DIFFERS, MISSING = {"MIGRATE_FAULT": "vdso:differs"}, {"MIGRATE_FAULT": "vdso:missing"}


def _maps(journey: Journey) -> list[str]:
    return [" ".join(line.split()) for line in Path(f"/proc/{journey.task.outer}/maps").read_text().splitlines()]


def _turn(journey: Journey) -> None:
    """The next move is to the other host."""
    journey.pair = Pair(journey.pair.b, journey.pair.a, journey.pair.directory)


def _must_be(journey: Journey, decision: str) -> None:
    assert journey.outcomes[-1].report["vdso"] == decision


def test_there_and_back_is_as_if_nothing_had_been(journeys: Journeys) -> None:
    """By way of another kernel, of one without a vDSO, and home."""
    journey = journeys.start("insider", "2", "0")
    before = _maps(journey)
    for env in (DIFFERS, MISSING, DIFFERS, None, None):
        journey.env = env
        journey.move("--no-converge", "continue", look=False)
        decision = "proxy" if env else "remap"
        _must_be(journey, decision)
        assert (_maps(journey) == before) == (decision == "remap")
        _turn(journey)
    journey.tell()
    journey.verdict()


def _last(journey: Journey) -> str:
    return str(journey.outcomes[-1].report["vdso"]) if journey.outcomes else "remap"


def test_twenty_times_and_nothing_piles_up(journeys: Journeys) -> None:
    journey = journeys.start("insider", "1", "0")
    journey.env = DIFFERS
    after_first: list[str] = []
    for _ in range(20):
        journey.move("--no-converge", "continue", look=False)
        _must_be(journey, "proxy")
        after_first = after_first or _maps(journey)
        assert _maps(journey) == after_first
        _turn(journey)
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize("state", [(), ("-p",)])
def test_caught_inside(journeys: Journeys, state: tuple[str, ...]) -> None:
    """Eight threads that do nothing but call the vDSO, and handlers that do so too."""
    journey = journeys.start("insider", "8", "1000", *state)
    for number in range(10):
        journey.env = (DIFFERS, MISSING, None)[number % 3]
        journey.move("--no-converge", "continue", look=False)
        _turn(journey)
    journey.tell()
    said = journey.verdict()
    assert " 0 nested" not in said and " 0 handled" not in said, said


def test_the_decision_is_told(journeys: Journeys) -> None:
    journey = journeys.start("insider", "1", "0")
    journey.env = DIFFERS
    outcome = journey.move("-v", look=False)
    rows = {line.split()[0]: line.split()[-1] for line in outcome.err.splitlines() if "__vdso_" in line}
    assert len(rows) >= 5 and set(rows.values()) == {"jump"}
    assert "vDSO: proxy" in outcome.err
    journey.tell()
    journey.verdict()

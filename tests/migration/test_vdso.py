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


def test_droppable_memory_by_way_of_a_kernel_without(journeys: Journeys) -> None:
    """It is plain memory there, and what it was when the process is back; the state of getrandom lies in it."""
    journey = journeys.start("insider", "2", "0")
    before = _droppable(journey)
    assert before
    for env in ({"MIGRATE_FAULT": "vdso:missing,droppable:missing"}, DIFFERS, None):
        journey.env = env
        journey.move("--no-converge", "continue", look=False)
        assert _droppable(journey) == ({} if env and env != DIFFERS else before)
        _turn(journey)
    journey.tell()
    journey.verdict()


def _droppable(journey: Journey) -> dict[str, str]:
    """Areas of that kind, and their VmFlags."""
    found, area = {}, ""
    for line in Path(f"/proc/{journey.task.outer}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmFlags" and "dp" in value.split():
            found[area] = value
        elif "-" in name.split()[0]:
            area = name.split()[0]
    return found


def test_the_decision_is_told(journeys: Journeys) -> None:
    journey = journeys.start("insider", "1", "0")
    journey.env = DIFFERS
    outcome = journey.move("-v", look=False)
    rows = {line.split()[0]: line.split()[-1] for line in outcome.err.splitlines() if "__vdso_" in line}
    assert len(rows) >= 5 and set(rows.values()) == {"jump"}
    assert "vDSO: proxy" in outcome.err
    journey.tell()
    journey.verdict()

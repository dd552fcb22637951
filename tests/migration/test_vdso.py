"""The vDSO on its way: the same, another one, none. The two hosts have one kernel, so another one is pretended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import moves
from tests.migration.journey import Journey, Journeys

MOVES = int(os.environ.get("VDSO_MOVES", "20"))
"""More of them show what is rare: `VDSO_MOVES=200`."""
POLITE = ("taskset", "--cpu-list", "0")
"""Whoever fills all cores is moved sooner if he leaves one to others. (nice(1) is no help between sessions:
sched_autogroup_enabled.)"""
DIFFERS, MISSING = {"MIGRATE_FAULT": "vdso:differs"}, {"MIGRATE_FAULT": "vdso:missing"}


def must_be(journey: Journey, decision: str) -> None:
    """What has become of the vDSO in the last move."""
    assert journey.outcomes[-1].report["vdso"] == decision


def test_there_and_back_is_as_if_nothing_had_been(journeys: Journeys) -> None:
    """By way of another kernel, of one without a vDSO, and home."""
    journey = journeys.start("insider", "2", "0")
    before = journey.maps
    for env in (DIFFERS, MISSING, DIFFERS, None, None):
        journey.env = env
        journey.move("--no-converge", "continue", look=False)
        decision = "proxy" if env else "remap"
        must_be(journey, decision)
        assert (journey.maps == before) == (decision == "remap")
        journey.turn()
    journey.tell()
    journey.verdict()


@pytest.mark.timeout(60 + 10 * MOVES)
def test_back_and_forth_with_everybody_inside(journeys: Journeys) -> None:
    """Eight threads that do nothing but call the vDSO, and handlers that interrupt them and do so too, between two
    kernels: nobody crashes, no time goes backwards, and nothing piles up."""
    journey = journeys.start("insider", "8", "1000", wrap=POLITE)
    seen = [journey.maps]
    for number in range(MOVES):
        journey.env = (DIFFERS, None)[number % 2]
        journey.move("--no-converge", "continue", look=False)
        must_be(journey, ("proxy", "remap")[number % 2])
        seen.append(journey.maps)
        assert seen[-1] == seen[(number + 1) % 2], f"move {number}"
        journey.turn()
    journey.tell()
    _all_were_busy(journey)


def test_from_proxy_to_proxy(journeys: Journeys) -> None:
    """The same where it is never home; and the state of getrandom lies in memory that travels."""
    journey = journeys.start("insider", "8", "1000", "-p")
    seen = []
    for number in range(6):
        journey.env = (DIFFERS, MISSING, DIFFERS)[number % 3]
        journey.move("--no-converge", "continue", look=False)
        seen.append(journey.maps)
        assert seen[-1] == seen[number % 3]
        journey.turn()
    journey.tell()
    _all_were_busy(journey)


def _all_were_busy(journey: Journey) -> None:
    said = journey.verdict()
    assert " 0 handled" not in said, said  # how many were nested is up to the machine


@pytest.mark.parametrize("env", [None, DIFFERS])
@pytest.mark.parametrize("depth", ["1", "2"])
def test_a_handler_that_has_interrupted_it_for_sure(
    journeys: Journeys, depth: str, env: dict[str, str] | None
) -> None:
    """And, with 2, another handler that has interrupted the first one in there. The innermost does not return before
    the process is traced, and that is not moved before all have returned."""
    journey = journeys.start("nested", depth)
    journey.env = env
    journey.move("--no-converge", "continue", look=False)
    must_be(journey, "proxy" if env else "remap")
    journey.tell()
    assert int(journey.verdict().split()[1]) >= 1


@pytest.mark.parametrize("env", [None, DIFFERS])
def test_who_does_not_come_out_is_not_moved(journeys: Journeys, env: dict[str, str] | None) -> None:
    """And is not touched: it finds its way back as if nothing had been."""
    journey = journeys.start("trapped")
    before = journey.maps
    started = moves.start(journey.pair.a, journey.task.pid, journey.pair.b.destination, env=env)
    outcome = moves.finish(started)
    assert outcome.code == 3 and not outcome.report["ok"], outcome.err
    assert "in a signal handler that has interrupted one" in outcome.err and "nothing was changed" in outcome.err
    assert journey.maps == before
    journey.tell()
    journey.verdict()


def test_droppable_memory_by_way_of_a_kernel_without(journeys: Journeys) -> None:
    """It is plain memory there, and what it was when the process is back; the state of getrandom lies in it."""
    journey = journeys.start("insider", "2", "0")
    before = _droppable(journey)
    assert before
    for env in ({"MIGRATE_FAULT": "vdso:missing,droppable:missing"}, DIFFERS, None):
        journey.env = env
        journey.move("--no-converge", "continue", look=False)
        assert _droppable(journey) == ({} if env and env != DIFFERS else before)
        journey.turn()
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

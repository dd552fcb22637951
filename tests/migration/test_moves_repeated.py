"""A process moves to and fro as often as one likes: nothing piles up, nothing gets lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import Pair
from tests.migration.journey import Journey, Journeys

TIMES = 10


def _to_and_fro(journey: Journey, ignore: tuple[str, ...] = (), look: bool = True) -> None:
    there, back = journey.pair, Pair(journey.pair.b, journey.pair.a, journey.pair.directory)
    pid = journey.task.pid
    maps = Path(f"/proc/{journey.task.outer}/maps").read_text()
    for number in range(TIMES):
        journey.pair = back if number % 2 else there
        journey.move("--no-converge", "continue", ignore=ignore, look=look)
        assert journey.task.pid == pid
        if look:
            assert _apart_from_inodes(Path(f"/proc/{journey.task.outer}/maps").read_text()) == _apart_from_inodes(maps)
    journey.tell()
    journey.verdict(60)


def _apart_from_inodes(maps: str) -> list[list[str]]:
    """Shared anonymous memory has another inode in every kernel object; the kernel numbers it."""
    return [words[:4] + words[5:] if words[-1] == "(deleted)" else words for words in map(str.split, maps.splitlines())]


@pytest.mark.parametrize("victim", ["numbered", "shared", "personal"])
def test_ten_times(journeys: Journeys, victim: str) -> None:
    _to_and_fro(journeys.start(victim, "8"))


def test_ten_times_while_its_memory_changes(journeys: Journeys) -> None:
    _to_and_fro(journeys.start("remaps", "77", "100"), look=False)


def test_ten_times_with_timers(journeys: Journeys) -> None:
    _to_and_fro(journeys.start("timers"), ignore=("status SigPnd", "status ShdPnd", r"thread \d+ SigPnd"))


def test_ten_times_and_every_timer_goes_off_once(journeys: Journeys) -> None:
    _to_and_fro(journeys.start("oneshots"), look=False)

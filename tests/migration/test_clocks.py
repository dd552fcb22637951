"""CLOCK_MONOTONIC and CLOCK_BOOTTIME go on, on a host whose own are far from ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import hosts, moves
from tests.migration.journey import Journey, Journeys
from tests.victims import Victims

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BUSY = ("--no-converge", "continue")
"""A machine on which all hosts are one may be slow; what is said about the downtime is not the matter here."""
BRACKET = 100_000
"""Nanoseconds; two clocks cannot be read at the very same moment."""


@contextmanager
def shifted(shift: int, other_boot: bool, directory: Path) -> Iterator[hosts.Pair]:
    """Two hosts, the clocks of the second one ahead by ``shift`` seconds. ``other_boot``: that is to be measured, as
    between two machines; otherwise it is known, as between two containers of one."""
    with hosts.two_hosts(shift=shift) as pair:
        if other_boot:
            (directory / "boot_id").write_text("00000000-0000-4000-8000-000000000000\n")
            pair.b.run(["mount", "--bind", str(directory / "boot_id"), BOOT_ID])
        try:
            yield pair
        finally:
            pair.finish()


def most(journey: Journey) -> float:
    """Milliseconds that the clocks may have gained by the last move, by what was said."""
    found = re.search(r"they gain ([0-9.]+) ms at most", journey.outcomes[-1].err)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("shift", "other_boot", "moves"),
    [(5000, True, 1), (5000, True, 4), (-100, True, 1), (0, True, 1), (5000, False, 4), (0, False, 1)],
)
def test_clocks_go_on(
    shift: int, other_boot: bool, moves: int, victims: Victims, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For every thread, and however often: what is read after the resume is no less than what was read before the
    freeze, and more by the downtime and one round trip at most."""
    with shifted(shift, other_boot, tmp_path) as pair:
        journey = Journeys(pair, victims).start("clocks", "3")
        round_trips = []
        for _ in range(moves):
            journey.move("-v", *BUSY, look=False)
            round_trips.append(most(journey))
            journey.turn()
        journey.tell()
        said = [line.split() for line in journey.verdict().splitlines()]
    allowed = sum(round_trips) * 1e6
    assert all(bool(each) == other_boot for each in round_trips)
    gained = [(int(low), int(high)) for word, low, high in (line for line in said if line[0] == "gained")]
    steps = [tuple(map(int, line[1:])) for line in said if line[0] == "step"]
    longest, least, most_real = max(steps)
    downtime = max(float(outcome.report["downtime_ms"]) for outcome in journey.outcomes)
    with capsys.disabled():
        print(
            f" gained {gained[0][1] / 1e6:.3f} of at most {allowed / 1e6:.3f} ms; longest step {longest / 1e6:.1f} ms "
            f"in {least / 1e6:.1f} to {most_real / 1e6:.1f} real ones; longest downtime {downtime:.1f} ms ",
            end="",
        )
    assert len(gained) == 2 and len(steps) == 3
    for low, high in gained:  # never lost; and what it has gained, it has gained by the round trips
        assert high >= 0 and low <= allowed + BRACKET
    # A step is as long as it really was, and what was gained: of the downtime nothing is lost or counted twice.
    for step, low, high in steps:
        assert low - BRACKET <= step <= high + allowed + BRACKET


@pytest.mark.parametrize("shift", [5000, -100])
def test_deadlines_stay_where_they_are(shift: int, victims: Victims, tmp_path: Path) -> None:
    """Timers, timerfds, futexes and sleeps, relative and absolute, by three clocks; there, back and there again."""
    with shifted(shift, True, tmp_path) as pair:
        journey = Journeys(pair, victims).start("deadlines", "20000")  # in which three moves fit on a slow machine, too
        for _ in range(3):
            journey.move(*BUSY, look=False)
            journey.turn()
        journey.verdict(60)


def test_no_clock_goes_back_though_the_others_is_slower(victims: Victims, tmp_path: Path) -> None:
    """What the destination's clocks lose while the memory is copied, the process stands still for; or it stays, where
    that is longer than was allowed."""
    with shifted(5000, True, tmp_path) as pair:
        journey = Journeys(pair, victims).start("clocks", "1")
        env = {"MIGRATE_FAULT": "drift:lost=0.4"}
        refused = moves.finish(moves.start(pair.a, journey.task.pid, pair.b.destination, env=env))
        assert refused.code == 5 and "have lost 0.4" in refused.err and "--max-downtime" in refused.err
        journey.must_live()
        journey.env = env
        assert journey.move("--max-downtime", "1s", *BUSY, look=False).report["downtime_ms"] >= 400
        journey.turn()
        journey.env = None
        journey.move(*BUSY, look=False)
        journey.tell()
        journey.verdict()


def test_periodic_timers_keep_their_beat(victims: Victims, tmp_path: Path) -> None:
    with shifted(5000, True, tmp_path) as pair:
        journey = Journeys(pair, victims).start("timers")
        for _ in range(2):
            journey.move(*BUSY, look=False)
            journey.turn()
        journey.tell()
        journey.verdict()

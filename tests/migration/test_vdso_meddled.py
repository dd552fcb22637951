"""Processes that have done something to their own vDSO: it goes on as they left it, or they are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import moves, observe
from tests.migration.journey import Journey, Journeys
from tests.migration.test_vdso import DIFFERS, MISSING, must_be
from tests.tasks import wait_until


def _special(journey: Journey) -> list[str]:
    return [line for line in journey.maps if line.split()[-1].startswith(("[vvar", "[vdso"))]


@pytest.mark.parametrize(
    ("unmaps", "env"), [("none", None), ("none", DIFFERS), ("none", MISSING), ("code", None), ("code", DIFFERS)]
)
def test_none_is_none_after_the_move(journeys: Journeys, unmaps: str, env: dict[str, str] | None) -> None:
    """Also where the kernel's data is left, without the code that reads it."""
    journey = journeys.start("meddles", unmaps)
    before = journey.maps
    left = _special(journey)
    assert bool(left) == (unmaps == "code") and not any("[vdso]" in line for line in left)
    journey.env = env
    journey.move()
    must_be(journey, "none")
    assert journey.maps == before
    journey.tell()
    journey.verdict()


def test_moved_as_a_whole(journeys: Journeys) -> None:
    """By remap, by proxy, and home."""
    journey = journeys.start("meddles", "whole")
    before = journey.maps
    for env in (None, DIFFERS, None):
        journey.env = env
        journey.move(look=False)
        must_be(journey, "proxy" if env else "remap")
        assert (journey.maps == before) == (env is None)
        journey.turn()
    journey.tell()
    journey.verdict()


def test_a_proxy_that_is_unmapped(journeys: Journeys) -> None:
    """What it led to does not travel on."""
    journey = journeys.start("meddles", "later")
    journey.env = DIFFERS
    journey.move(look=False)
    must_be(journey, "proxy")
    (journey.directory / "unmap").touch()
    wait_until("unmapped", lambda: "unmapped" in journey.out)
    assert _special(journey)
    journey.turn()
    for env in (DIFFERS, None):
        journey.env = env
        journey.move(look=False)
        must_be(journey, "none")
        assert not _special(journey) and not any("vDSO" in line for line in journey.maps)
        journey.turn()
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("data", "its vDSO is unmapped in part, or moved apart: [vdso] 0x2000 at +0x0; here it is [vvar]"),
        ("apart", "its vDSO is unmapped in part, or moved apart"),
        ("writable", "its vDSO is mapped in parts, or its protection was changed"),
        ("written", "its vDSO is not that of this kernel: it has been written to"),
    ],
)
def test_refused(journeys: Journeys, kind: str, reason: str) -> None:
    journey = journeys.start("meddles", kind)
    before = observe.snapshot(journey.task.outer)
    outcome = moves.finish(moves.start(journey.pair.a, journey.task.pid, journey.pair.b.destination))
    assert outcome.code == 3 and f"pid {journey.task.pid}: {reason}" in outcome.err, outcome.err
    assert not observe.compare(before, observe.snapshot(journey.task.outer))
    assert not Path(f"/proc/{journey.pair.b.init}/task/{journey.pair.b.init}/children").read_text().split()[1:]
    journey.tell()
    journey.verdict()

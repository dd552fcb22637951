"""Processes under seccomp: each thread has its filters there, before it runs an instruction, and here when it stays."""

from __future__ import annotations

import pytest

from tests import moves, observe
from tests.migration.journey import Journeys
from tests.tasks import status_field, wait_until


@pytest.mark.parametrize("kind", ["stacked", "threads", "synced", "privileged"])
def test_filters(journeys: Journeys, kind: str) -> None:
    journeys.start("confined", kind).go()


def test_strict_mode(journeys: Journeys) -> None:
    journey = journeys.start("confined", "strict")
    wait_until("strict", lambda: status_field(journey.task.outer, "Seccomp") == ["1"])
    journey.move(ignore=[r"fd \d+ pos"])
    count = (journey.directory / "count").stat().st_size
    wait_until("it counts on", lambda: (journey.directory / "count").stat().st_size > count + 80)
    (journey.directory / "word").write_text("x")
    journey.verdict()


@pytest.mark.parametrize("point", ["rehearsed", "before-commit"])
def test_rolled_back(journeys: Journeys, point: str) -> None:
    """Here as if nothing had happened, its filters included; and it can be moved afterwards."""
    journey = journeys.start("confined", "synced")
    pair, before = journeys.pair, observe.snapshot(journey.task.outer)
    command = moves.start(pair.a, journey.task.pid, pair.b.destination, env={"MIGRATE_FAULT": f"{point}:fail"})
    assert moves.finish(command).code == 5
    assert not observe.compare(before, observe.snapshot(journey.task.outer))
    journey.go()

"""The control group of a process that has been moved: that of the agent, the one that it had, or another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import cgroup
from tests import moves
from tests.migration.journey import Journeys


@pytest.fixture
def group() -> Iterator[Path]:
    """A group that both hosts see."""
    top = Path(cgroup.hierarchy(Path("/proc/self/mountinfo").read_text())) / f"migrate-test-{os.getpid()}"
    top.mkdir()
    yield top
    made = [str(path) for path in (top, top / "new") if path.exists()]
    cgroup.remove(made)
    assert not made, "a group still has processes"


def of(outer: int) -> str:
    lines = Path(f"/proc/{outer}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def test_kept_changed_and_left(group: Path, journeys: Journeys) -> None:
    here = of(os.getpid())
    for wanted, there in ((["keep"], f"/{group.name}"), ([f"/{group.name}/new"], f"/{group.name}/new"), ([], here)):
        journey = journeys.start("numbered")
        (group / "cgroup.procs").write_text(str(journey.task.outer))
        journey.move(*(f"--cgroup={each}" for each in wanted))
        assert of(journey.task.outer) == there
        journey.tell()
        journey.verdict()


def test_taken_away_by_a_rollback(group: Path, journeys: Journeys) -> None:
    journey, pair = journeys.start("numbered"), journeys.pair
    options = ("--cgroup", f"/{group.name}/new")
    fault = {"MIGRATE_FAULT": "before-commit:fail"}
    command = moves.start(pair.a, journey.task.pid, pair.b.destination, *options, env=fault)
    assert moves.finish(command).code == 5
    assert not (group / "new").exists() and of(journey.task.outer) == of(os.getpid())
    journey.tell()
    journey.verdict()

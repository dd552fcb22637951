"""Whoever dies, and whatever breaks, at every phase of a migration before the commit: the process runs on where it
was."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.migration.journey import Journeys
from tests.migration.launcher import Launcher, Run
from tests.migration.scene import POINTS, Stage, kill, left_in, states
from tests.tasks import wait_until

AFTER = POINTS[POINTS.index("created") :]
Disaster = Callable[[Stage, Run], object]
DISASTERS: dict[str, tuple[Disaster, tuple[str, ...]]] = {
    "ssh cut": (lambda scene, run: scene.pair.b.cut_ssh(), POINTS),
    "source agent killed": (lambda scene, run: kill(run.agents[0]), POINTS),
    "destination agent killed": (lambda scene, run: kill(scene.agent), POINTS),
    "overseer killed": (lambda scene, run: kill(scene.overseer), AFTER),
    "restoree killed": (lambda scene, run: kill(scene.restoree), AFTER),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", DISASTERS)
def test_at_every_phase(stage: Stage, name: str) -> None:
    disaster, points = DISASTERS[name]
    for point in points:
        hold, run = stage.hold(point)
        disaster(stage, run)
        time.sleep(0.2)  # until it is noticed: at the last point there is no other time for that
        hold.release()
        result = run.wait()
        # COMMIT is not sent to an overseer that is dead; that a restoree is, COMMIT finds out.
        assert result.code == 5 and result.report["error"], (name, point, result)
        assert "unexpected" not in result.err and "Traceback" not in result.err, (name, point, result.err)
        try:
            stage.untouched()
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"{name} at {point}: {error}\n{result.err}") from error


def test_an_error_at_every_phase(stage: Stage) -> None:
    for point in POINTS:
        result = stage.attempt(f"{point}:fail")
        assert result.code == 5 and result.report["error"] == f"injected at {point}", (point, result)
        stage.untouched()


def test_coordinator_killed_at_every_phase(stage: Stage) -> None:
    for point in POINTS[:-1]:
        hold, run = stage.hold(point)
        kill(run.outer)
        hold.release()
        assert run.wait().code == -signal.SIGKILL
        if point in ("restored", "before-commit"):
            # It is prepared there, and waits for who comes and asks, or for the end of its lease.
            stage.runs_on()
            assert stage.recover().code == 0
        stage.untouched()


def test_coordinator_killed_right_before_commit(journeys: Journeys, start: Launcher, tmp_path: Path) -> None:
    """Nobody is left who could know whether COMMIT was sent: the copy here waits for whoever finds out."""
    log = tmp_path / "count"
    journey = journeys.run("counter", [journeys.victims("counter"), str(log), "1"])
    journey.directory = tmp_path
    wait_until("counting", log.exists)
    stage = Stage(journeys.pair, journey, start, tmp_path)
    hold, run = stage.hold("halted")
    kill(run.outer)
    hold.release()
    assert run.wait().code == -signal.SIGKILL
    wait_until("the process stopped, and nobody's", lambda: states(journey.task.outer) == {"T"})
    assert stage.recover().code == 0
    stage.untouched()


@pytest.mark.parametrize("point", ["source-stopped", "source-collected", "source-unlocked"])
def test_source_agent_killed_in_the_middle_of_the_freeze(stage: Stage, point: str) -> None:
    result = stage.attempt(f"{point}:kill")
    assert result.code == 5 and "signal 9" in result.report["error"], result
    stage.untouched()


@pytest.mark.parametrize("point", ["preflight", "tracked", "round", "rehearsed", "frozen"])
def test_coordinator_and_source_agent_killed(stage: Stage, point: str) -> None:
    """Nobody is left to take the parasite out. While the process runs there is none in it; in the frozen window it is
    left behind, does nothing, and the next migration takes it out."""
    hold, run = stage.hold(point)
    agent = run.agents[0]
    kill(run.outer)
    kill(agent)
    hold.release()
    run.wait()
    if point == "frozen":
        stage.runs_on()
        assert left_in(stage.journey.task.outer)
        result = stage.attempt("frozen:fail")
        assert result.code == 5 and "injected" in result.report["error"]
    stage.untouched()


def test_the_source_agent_dies_right_before_commit(stage: Stage) -> None:
    """The SIGSTOP that is to keep the process for the one who decides is taken back."""
    result = stage.attempt("source-halted:kill")
    assert result.code == 5, result
    stage.untouched()

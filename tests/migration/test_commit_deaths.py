"""Whoever dies at whatever step of the commit: one copy, on one side, and `migrate recover` finds out which."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.migration.journey import Journeys
from tests.migration.launcher import Launcher
from tests.migration.oneness import HERE, THERE, Doubted
from tests.migration.repeater import repeater
from tests.migration.scene import Stage, commit, kill, staged

# Where the coordinator is killed, and where the process is in the end.
COORDINATOR = {
    **dict.fromkeys(("begun", "created", "intent", "restored", "before-commit", "halted"), HERE),
    **dict.fromkeys(("acknowledged", "ended", "done", "committed"), THERE),
    "commit-sent": "",  # either
}


@pytest.mark.parametrize("point", COORDINATOR)
def test_the_coordinator(stage: Stage, point: str) -> None:
    result = stage.attempt(f"{point}:kill")
    assert result.code == -signal.SIGKILL
    where = Doubted(stage).settle()
    assert not COORDINATOR[point] or where == COORDINATOR[point]


@pytest.mark.parametrize("point", ["intent", "restored", "before-commit", "halted", "acknowledged"])
def test_the_coordinator_and_the_source_agent(stage: Stage, point: str) -> None:
    hold, run = stage.hold(point)
    agent = run.agents[0]
    kill(run.outer)
    kill(agent)
    hold.release()
    assert run.wait().code == -signal.SIGKILL
    assert Doubted(stage).settle() == (THERE if point == "acknowledged" else HERE)


@pytest.mark.parametrize("point", ["source-halted", "commit-sent", "acknowledged", "source-killed"])
def test_the_source_agent(stage: Stage, point: str) -> None:
    """The command sees to it by itself."""
    if point.startswith("source-"):
        result = stage.attempt(f"{point}:kill")
    else:
        hold, run = stage.hold(point)
        kill(run.agents[0])
        hold.release()
        result = run.wait()
    where = HERE if point == "source-halted" else THERE
    assert result.code == (5 if where == HERE else 0), result
    assert Doubted(stage).one() == where


@pytest.mark.parametrize("point", ["there-begun", "there-prepared", "there-commit", "there-released"])
def test_the_destination_agent(stage: Stage, point: str) -> None:
    """The command asks what became of it, and knows."""
    result = stage.attempt(f"{point}:kill")
    where = THERE if point == "there-released" else HERE
    assert result.code == (0 if where == THERE else 5), result
    assert Doubted(stage).one() == where


@pytest.mark.timeout(600)
def test_the_overseer_at_every_op_of_the_commit(journeys: Journeys, start: Launcher, tmp_path: Path) -> None:
    """Up to the op that unties the last thread the process is killed with it, before it has run; after it, it lives."""
    with staged(journeys, start, tmp_path) as stage:
        program, revocable = commit(stage.journey.task.outer)
        count = len(program)
        first = ops_before(stage) - count
        # It stays where it is, and can be tried again.
        for index in range(revocable):
            result = stage.attempt(f"op:{first + index}:kill")
            if index == revocable - 1:
                break
            assert result.code == 5 and Doubted(stage).one() == HERE, (index, result)
        # The one system call that nothing tells of: whether it was made shows in what lives, but nobody does.
        assert result.code == 6 and "at the very moment of letting it go" in result.report["error"], result
        assert stage.recover().code == 6
        assert stage.recover(Doubted(stage).id, "--abort").code == 0
        assert Doubted(stage).one() == HERE
    for index in range(revocable, count, 3):
        own = tmp_path / str(index)
        own.mkdir()
        with staged(journeys, start, own) as stage:
            result = stage.attempt(f"op:{first + index}:kill")
            assert result.code == 0 and Doubted(stage).one() == THERE, (index, result)


def ops_before(stage: Stage) -> int:
    """How many ops a migration of it sends, with those of the commit."""
    with repeater(stage.pair.a, stage.journey.task.pid, stage.pair.b) as again:
        whole = again.attempt("halted:fail")
    assert whole.error == "injected at halted"
    stage.untouched()
    return len(whole.ops)

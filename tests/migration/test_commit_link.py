"""The link breaks in the commit: the command finds its way back and ends it, or says that it is in doubt."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.migration.oneness import HERE, THERE, Doubted, copies_there, states_of
from tests.migration.scene import Stage, kill, states
from tests.tasks import wait_until

QUICK = ("--max-downtime", "1ms", "--no-converge", "continue")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("point", ["halted", "commit-sent", "there-commit", "there-released"])
def test_down_and_up_again(stage: Stage, point: str) -> None:
    """COMMIT is lost, or its answer is."""
    hold, run = stage.hold(point, *QUICK)
    stage.pair.b.link_down()
    hold.release()
    wait_until("reconnecting", lambda: "reconnecting" in run.err or run.ended, 40)
    time.sleep(1)
    stage.pair.b.link_up()
    result = run.wait()
    assert result.code == 0 and result.report["ok"], result
    assert Doubted(stage).one() == THERE


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("point", "where"), [("halted", ""), ("there-released", THERE)])
def test_down_for_longer_than_it_tries(stage: Stage, point: str, where: str) -> None:
    """A COMMIT that was sent may still arrive when the link is up again: then it was a commit."""
    doubted = Doubted(stage)
    hold, run = stage.hold(point, *QUICK, "--reconnect-for", "1s")
    stage.pair.b.link_down()
    hold.release()
    result = run.wait()
    assert result.code == 6 and f"run migrate recover {doubted.id}" in result.report["error"], result
    assert states(stage.journey.task.outer) == {"T"}
    again = stage.recover()
    assert again.code == 6 and "--abort lets process" in again.out, again
    assert states(stage.journey.task.outer) == {"T"}
    stage.pair.b.link_up()
    assert doubted.settle() == where or not where


@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_tries(stage: Stage, number: int) -> None:
    """The user does not want to wait; the process does, and the command says how that ends."""
    doubted = Doubted(stage)
    hold, run = stage.hold("there-released", *QUICK)
    stage.pair.b.link_down()
    hold.release()
    wait_until("reconnecting", lambda: "reconnecting" in run.err or run.ended, 40)
    run.signal(number)
    result = run.wait()
    assert result.code == 6 and "(interrupted)" in result.report["error"], result
    assert f"run migrate recover {doubted.id}" in result.report["error"] and "rolling back" not in result.err, result
    assert states(stage.journey.task.outer) == {"T"}
    assert "in doubt" in {each["outcome"] for each in _here(stage)}
    stage.pair.b.link_up()
    assert doubted.settle() == THERE


def _here(stage: Stage) -> list[dict[str, object]]:
    return list(json.loads(stage.launcher.start("--json", "status").wait().out))


@pytest.mark.parametrize(("point", "where"), [("halted", HERE), ("there-commit", THERE), ("there-released", THERE)])
def test_the_ssh_session_is_cut(stage: Stage, point: str, where: str) -> None:
    """Before COMMIT is sent that calls all off, and the destination, which is prepared, is told; after it, it does
    not matter."""
    hold, run = stage.hold(point)
    stage.pair.b.cut_ssh()
    time.sleep(0.2)  # until it is noticed
    hold.release()
    result = run.wait()
    assert result.code == (0 if where == THERE else 5), result
    assert Doubted(stage).one() == where


def test_prepared_and_left_alone(stage: Stage) -> None:
    """The command is killed right before COMMIT, the restoree waits for its lease; recover need not."""
    doubted = Doubted(stage)
    hold, run = stage.hold("halted")
    kill(run.outer)
    hold.release()
    run.wait()
    restoree = copies_there(stage)
    assert len(restoree) == 1 and states(restoree[0]) == {"t"}
    assert states_of(stage.pair.b, doubted.id, "destination") == ["begun", "prepared"]
    assert [each["outcome"] for each in doubted.status()] == ["in doubt", "under way"]
    assert doubted.settle() == HERE


def test_the_lease_ends(stage: Stage) -> None:
    """It is in the journal, before anything is killed."""
    doubted = Doubted(stage)
    result = stage.attempt("halted:kill,lease:is=1")
    assert result.code == -signal.SIGKILL
    wait_until("given up", lambda: not copies_there(stage))
    assert states_of(stage.pair.b, doubted.id, "destination") == ["begun", "prepared", "aborted"]
    assert doubted.settle() == HERE

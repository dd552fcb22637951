"""Several migrations at the same time: of one process, of which one is let; and of ten, which all arrive."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import moves
from tests.hosts import Pair
from tests.migration.journey import Journey, Journeys
from tests.migration.launcher import Launcher
from tests.migration.oneness import HERE, THERE, Doubted
from tests.migration.scene import Stage, counted, staged
from tests.migration.test_moves_state import occupy
from tests.tasks import status_field, wait_until
from tests.victims import Victims

MANY = 10
WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
OPTIONS = ("--verify", "--no-converge", "continue")  # ten on two cores are not quick


def test_a_second_one_is_refused(stage: Stage) -> None:
    """Whatever the first one is doing. It is told who was first, and does nothing."""
    for point in ("preflight", "created", "round", "frozen", "halted"):
        hold, run = stage.hold(point)
        second = stage.launcher.start(*stage.command).wait()
        assert second.code == 3, (point, second)
        first = stage.pair.a.inner_pid(run.outer)
        wanted = rf"being moved already, by migration (\S+) of process {first} since {WHEN}; wait for that"
        found = re.search(wanted, second.report["error"])
        assert found, (point, second.report["error"])
        assert point == "preflight" or found[1] == Doubted(stage).id
        run.signal(signal.SIGINT)
        assert run.wait().code == 130, point
        hold.release()
        stage.untouched()


@pytest.mark.parametrize("threads", [1, 4])
def test_ten_at_once(two_hosts: Pair, victims: Victims, tmp_path: Path, threads: int) -> None:
    journeys = []
    for number in range(MANY):
        directory = tmp_path / str(number)
        directory.mkdir()
        argv = [victims("counter"), str(directory / "count"), str(threads)]
        journeys.append(Journey("counter", directory, two_hosts, two_hosts.a.spawn(argv)))
    wait_until("counting", lambda: all((each.directory / "count").exists() for each in journeys))
    commands = [moves.start(two_hosts.a, each.task.pid, two_hosts.b.destination, *OPTIONS) for each in journeys]
    outcomes = [moves.finish(command, 120) for command in commands]
    for each, outcome in zip(journeys, outcomes, strict=True):
        assert outcome.code == 0, (outcome, [other.code for other in outcomes])
        assert not each.task.alive
        each.task = two_hosts.b.adopt(outcome.report["new_pid"])
        lines = len((each.directory / "count").read_text())
        wait_until("counting on", lambda each=each, lines=lines: len((each.directory / "count").read_text()) > lines)
        if threads == 1:
            counted(each)


# What goes wrong with each of several, and where that one is in the end.
TOGETHER = {
    "preflight:sleep=0": THERE,  # nothing
    "there-prepared:kill": HERE,
    "halted:kill": HERE,
    "acknowledged:kill": THERE,
    "source-halted:kill": HERE,
    "there-released:kill": THERE,
}


@pytest.mark.timeout(200)
def test_several_go_wrong_at_once(journeys: Journeys, start: Launcher, tmp_path: Path) -> None:
    """Each by itself: what becomes of one is nothing to the others, and one `migrate recover` settles all."""
    pair = journeys.pair
    with ExitStack() as stack:
        stages = []
        for number in range(len(TOGETHER)):
            directory = tmp_path / str(number)
            directory.mkdir()
            stages.append(stack.enter_context(staged(journeys, start, directory)))
        runs = [
            stage.launcher.start("--no-converge", "continue", *stage.command, fault=fault)
            for stage, fault in zip(stages, TOGETHER, strict=True)
        ]
        results = dict(zip(TOGETHER, [run.wait() for run in runs], strict=True))
        recovered = stages[0].recover()
        assert recovered.code == 0, recovered
        for stage, (fault, where) in zip(stages, TOGETHER.items(), strict=True):
            killed = fault in ("halted:kill", "acknowledged:kill")
            assert results[fault].code == (-signal.SIGKILL if killed else 5 * (where == HERE)), (fault, results[fault])
            there = [pid for pid in pair.b.pids() if pid == stage.journey.task.pid]
            assert (stage.journey.task.alive, len(there)) == (where == HERE, int(where == THERE)), fault
            if where == THERE:
                stage.journey.task = pair.b.adopt(there[0])
            stage.runs_on()
            counted(stage.journey)
        wait_until("nothing else there", lambda: len(pair.b.pids()) == len(stages[0].there) + 3, 20)


@pytest.mark.parametrize(("point", "which"), [("preflight", 0), ("round", 1), ("frozen", -1)])
def test_a_number_that_is_given_away_meanwhile(stage: Stage, point: str, which: int) -> None:
    """That of the process, or of a thread, to somebody who came after our look: it gets numbers of its own."""
    numbers = sorted(status_numbers(stage.journey.task.outer))
    hold, run = stage.hold(point)
    occupied = occupy(stage.pair.b, numbers[which])

    def over() -> bool:
        hold.path.unlink(missing_ok=True)  # the second attempt comes to the same point
        return run.ended

    wait_until("the end", over, 60)
    result = run.wait()
    assert result.code == 0 and occupied.alive, result
    assert "File exists: once more, in a PID namespace of its own" in result.err
    assert result.report["new_pid"] != stage.journey.task.pid
    stage.journey.task = stage.pair.b.adopt(result.report["new_pid"])


def status_numbers(outer: int) -> list[int]:
    """Of its threads, as their host counts."""
    return [int(status_field(int(path.name), "NSpid")[1]) for path in Path(f"/proc/{outer}/task").iterdir()]

"""System V shared memory, semaphores and queues, and POSIX shared memory, move with the processes that use them, or
stay as they are; and nothing of them is where it does not belong."""

from __future__ import annotations

import pytest

from tests import moves
from tests.hosts import Host
from tests.migration.journey import Journeys

VICTIMS = ("segments", "semaphores", "posixmemory", "mqueues")
COLUMNS = {"shm": 11, "sem": 8, "msg": 11}  # those that are not of times, nor of what is in memory


def objects(host: Host) -> dict[str, list[list[str]]]:
    """The tables of a host's own IPC namespace, and its names in /dev/shm."""
    found = {"names": [host.run(["ls", "-A", "/dev/shm"]).stdout.split()]}
    for kind, columns in COLUMNS.items():
        lines = host.run(["cat", f"/proc/sysvipc/{kind}"]).stdout.splitlines()[1:]
        found[kind] = [line.split()[:columns] for line in lines]
    return found


INODES = {"posixmemory": [r"maps .*"], "mqueues": [r"fd \d+ ino"]}  # those of files in memory are others there
NOTHING: dict[str, list[list[str]]] = {"names": [[]], "shm": [], "sem": [], "msg": []}


@pytest.mark.parametrize("victim", VICTIMS)
def test_moves(journeys: Journeys, victim: str) -> None:
    journey = journeys.start(victim)
    assert objects(journeys.pair.a) != NOTHING or victim == "mqueues"
    journey.move(ignore=INODES.get(victim, []))
    assert objects(journeys.pair.a) == NOTHING  # they are not left behind
    journey.tell()
    journey.verdict()
    assert objects(journeys.pair.b) == NOTHING


def test_a_name_that_somebody_has(journeys: Journeys) -> None:
    """Is not taken away, but said."""
    journey = journeys.start("posixmemory")
    pair = journeys.pair
    path = f"/dev/shm/victim-{journey.task.pid}"
    pair.b.run(["touch", path])
    outcome = moves.finish(moves.start(pair.a, journey.task.pid, pair.b.destination))
    assert outcome.code == 3 and f"{path} is there on the destination already" in outcome.report["error"], outcome
    pair.b.run(["rm", path])
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("point", ["round", "restored"])
def test_is_called_off(journeys: Journeys, victim: str, point: str) -> None:
    """Nothing is changed here, and nothing is left there."""
    journey = journeys.start(victim)
    pair = journeys.pair
    before = objects(pair.a)
    command = moves.start(pair.a, journey.task.pid, pair.b.destination, env={"MIGRATE_FAULT": f"{point}:fail"})
    outcome = moves.finish(command)
    assert outcome.code == 5 and point in outcome.report["error"], outcome
    assert objects(pair.a) == before and objects(pair.b) == NOTHING
    journey.tell()
    journey.verdict()

"""System V shared memory, semaphores and message queues move with the processes that use them."""

from __future__ import annotations

from tests.hosts import Host
from tests.migration.journey import Journeys

NO_OBJECTS = [1, 1, 1]  # the head of each table


def objects(host: Host) -> list[int]:
    """Lines of the tables of a host's own IPC namespace."""
    tables = [host.run(["cat", f"/proc/sysvipc/{kind}"]).stdout for kind in ("shm", "sem", "msg")]
    return [len(table.splitlines()) for table in tables]


def test_shared_memory_of_a_parent_and_its_child(journeys: Journeys) -> None:
    journey = journeys.start("segments")
    journey.move()
    assert objects(journeys.pair.a) == objects(journeys.pair.b) == NO_OBJECTS
    journey.tell()
    journey.verdict()

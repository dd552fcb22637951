"""What descriptors lead to moves: what is in files and pipes, where a directory was, who holds a lock."""

from __future__ import annotations

from pathlib import Path

from tests import moves, observe
from tests.migration.journey import Journeys

# The kernel shows who holds a lock by the reader's own number of it.
LOCKS = [r"fd \d+ lock"]
# A timer that repeats goes off meanwhile.
TICKS = [r"fd \d+ ticks"]
# O_TMPFILE shows in the flags, and the name is the number of the inode: neither can be asked for.
TEMPORARY = ["fd 3 flags", "fd 3 link"]
# Of each host by itself: one on the shared file system of this one kernel would be the very same on both.
FIFO = "/run/victim-fifo"


def test_files_devices_and_memory_files(journeys: Journeys) -> None:
    journey = journeys.start("handles")
    assert "#" in Path(f"/proc/{journey.task.outer}/fd/3").readlink().name
    journey.go(ignore=TEMPORARY)


def test_pipes_events_timers_and_watches(journeys: Journeys) -> None:
    hosts = (journeys.pair.a, journeys.pair.b)
    for host in hosts:
        host.run(["mkfifo", FIFO])
    try:
        journeys.start("plumbing", FIFO).go(ignore=[*TICKS, r"fd \d+ ino"])  # each host has a FIFO of its own
    finally:
        for host in hosts:
            host.run(["rm", FIFO])


def test_fifo_that_is_in_use_there(journeys: Journeys) -> None:
    """What is in it is neither lost nor there twice: here it is one and the same FIFO."""
    journey, pair = journeys.start("plumbing"), journeys.pair
    outcome = moves.finish(moves.start(pair.a, journey.task.pid, pair.b.destination))
    assert outcome.code == 5 and "FIFO that has something in it" in outcome.report["error"], outcome.err
    journey.tell()
    journey.verdict()


def test_locks(journeys: Journeys) -> None:
    journeys.start("locks").go(ignore=LOCKS)


def test_another_root(journeys: Journeys) -> None:
    journey = journeys.start("jailed", flags=["-static"])
    journey.move()
    assert observe.snapshot(journey.task.outer)["link cwd"] == str(journey.directory / "jail" / "cell")
    (journey.directory / "jail" / "go").touch()
    journey.verdict()

"""Open files of every kind move, with offsets, contents, flags and what is shared among them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.migration.journey import Journeys
from tests.tasks import wait_until

CHROOT_DIRECTORIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/proc", "/tmp", "/work", "/dev")


def test_regular_files_directories_devices_and_locks(journeys: Journeys) -> None:
    journeys.start("opened").go()


def test_pipes_and_fifos(journeys: Journeys) -> None:
    journeys.start("pipes").go()


def test_descriptors_that_wait_for_events(journeys: Journeys) -> None:
    journeys.start("events").go()


def test_streams_to_null(journeys: Journeys) -> None:
    """What leads to a pipe of ours leads to nothing there, if that is asked for."""
    victims, pair = journeys.victims, journeys.pair
    log = pair.directory / "counted-null"
    read, write = os.pipe()
    try:
        task = pair.a.spawn([victims("counter"), str(log), "2"], stdout=write, stderr=write)
    finally:
        os.close(read)
        os.close(write)
    from tests import moves

    moved, outcome = moves.move(pair, task, "--stdio", "null")
    assert [os.readlink(f"/proc/{moved.outer}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    assert "stdio_log" not in outcome.report

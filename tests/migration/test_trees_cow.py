"""Memory that the processes of a tree share by copy on write: what it costs to send, and what they have there."""

from __future__ import annotations

from tests.migration.journey import Journeys
from tests.tasks import memory


def test_what_is_shared_is_sent_once_and_stays_shared(journeys: Journeys) -> None:
    """A parent with 64 MiB, and eight children that have each written to one."""
    journey = journeys.start("heirs", "64", "8", "1024", "quiet")
    before = memory(journey.task.outer)
    outcome = journey.move("--compress", "none", "--no-converge", "continue")
    after = memory(journey.task.outer)
    assert abs(after - before) < 0.02 * before, f"{before} bytes here, {after} there"
    assert outcome.report["bytes_sent"] < 1.05 * before
    journey.tell()
    journey.verdict()


def test_without_room_for_a_copy_each_gets_its_own(journeys: Journeys) -> None:
    """As where vm.overcommit_memory is 2, and a small child has a large parent."""
    journey = journeys.start("heirs", "4", "3")
    journey.env = {"MIGRATE_FAULT": "fork:missing"}
    outcome = journey.move("--no-converge", "continue")
    assert "no memory to fork: once more" in outcome.err
    journey.tell()
    journey.verdict()

"""A journal's disk is full at each of its records: either the process stays here, or it has moved, and both hosts know,
as soon as there is room again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agents import journal
from agents.journal import BEGUN, COMMITTED, DESTINATION, LOCKS, PREPARED, RELEASING, SOURCE
from tests.chaos.resources import Disk
from tests.hosts import Host
from tests.migration.journey import Journeys
from tests.migration.launcher import Launcher
from tests.migration.oneness import HERE, THERE, Doubted, journals, states_of
from tests.migration.scene import Stage, staged

PAGE = 4096  # bytes by which a tmpfs gives room
LITTLE = 10  # bytes: some of a record
RECORD = len(journal.line(COMMITTED, journal.boot_id()))  # in the commit, but for two digits of the time


@dataclass
class Narrow:
    """The disk with the journals of a host."""

    host: Host
    disk: Disk

    def fill(self, role: str, records: int) -> None:
        """Nobody writes just now. There is room for so many records of the commit, and a little, in the newest
        journal."""
        id = [id for id, each in journals(self.host) if each == role][-1]
        path = self.disk.path / "migrate" / "journal" / f"{id}.{role}"
        last = journal.parse(path.read_bytes(), str(path))[0][-1]
        room = PAGE - path.stat().st_size - (records * (RECORD + 2) + LITTLE)
        longer = journal.line(last.state, last.boot, **last.fields, padding="")
        with path.open("ab") as file:
            file.write(journal.line(last.state, last.boot, **last.fields, padding="x" * (room - len(longer))))
        self.disk.fill()


@pytest.fixture
def disks(journeys: Journeys) -> Iterator[dict[str, Narrow]]:
    """By role."""
    pair = journeys.pair
    made = {}
    for role, host in ((SOURCE, pair.a), (DESTINATION, pair.b)):
        made[role] = Narrow(host, Disk(host, host.directory / "state"))
    yield made
    for each in made.values():
        each.host.run(["umount", str(each.host.directory / "state")])


@pytest.fixture
def narrow(disks: dict[str, Narrow], journeys: Journeys, start: Launcher, tmp_path: Path) -> Iterator[Stage]:
    """A process, on hosts with small disks for their journals."""
    with staged(journeys, start, tmp_path) as made:
        yield made


# Where the disk is full there, room for how many records of the commit is left, and where the process is then.
THERE_FULL = {
    "prepared": ("sent", 0, HERE),
    "committed": ("there-prepared", 0, HERE),
    "releasing": ("there-prepared", 1, HERE),
    "released": ("there-prepared", 2, THERE),
}


LAST = {"prepared": BEGUN, "committed": PREPARED, "releasing": COMMITTED, "released": RELEASING}


@pytest.mark.parametrize("record", THERE_FULL)
def test_there(narrow: Stage, disks: dict[str, Narrow], record: str) -> None:
    point, room, where = THERE_FULL[record]
    doubted = Doubted(narrow)
    hold, run = narrow.hold(point)
    disks[DESTINATION].fill(DESTINATION, room)
    hold.release()
    result = run.wait()
    assert result.code == (0 if where == THERE else 5), result
    if where == HERE:
        what = "No space left on device" if record == "prepared" else f"{record.upper()} in the journal"
        assert what in result.report["error"], result
    found = states_of(narrow.pair.b, doubted.id, DESTINATION)
    assert found[-1] == LAST[record]
    disks[DESTINATION].disk.drain()
    assert doubted.one() == where


def test_no_journal_there(narrow: Stage, disks: dict[str, Narrow]) -> None:
    disks[DESTINATION].disk.fill()
    result = narrow.attempt("")
    assert result.code == 5 and "No space left on device" in result.report["error"], result
    assert not list(disks[DESTINATION].disk.path.glob("migrate/journal/*"))
    disks[DESTINATION].disk.drain()
    assert Doubted(narrow).one() == HERE


def test_no_journal_here(narrow: Stage, disks: dict[str, Narrow]) -> None:
    disks[SOURCE].disk.fill()
    result = narrow.attempt("")
    assert result.code == 3 and "no journal can be kept" in result.report["error"], result
    assert not list(disks[SOURCE].disk.path.glob("migrate/journal/*"))
    narrow.untouched()


def test_no_intent_here(narrow: Stage, disks: dict[str, Narrow]) -> None:
    """Nor the end of it."""
    doubted = Doubted(narrow)
    hold, run = narrow.hold("rehearsed")
    disks[SOURCE].fill(SOURCE, 0)
    hold.release()
    result = run.wait()
    assert result.code == 5 and "cannot be written: No space left on device" in result.report["error"], result
    assert states_of(narrow.pair.a, doubted.id, SOURCE)[-1] == BEGUN
    narrow.untouched()
    disks[SOURCE].disk.drain()
    assert doubted.settle() == HERE


def test_moved_and_not_written_down_here(narrow: Stage, disks: dict[str, Narrow]) -> None:
    """It has moved all the same; the journal is in doubt until it is asked for."""
    doubted = Doubted(narrow)
    hold, run = narrow.hold("ended")
    disks[SOURCE].fill(SOURCE, 0)
    hold.release()
    result = run.wait()
    assert result.code == 0 and "cannot be written: No space left on device" in result.err, result
    assert states_of(narrow.pair.a, doubted.id, SOURCE)[-1] == LOCKS
    disks[SOURCE].disk.drain()
    assert doubted.settle() == THERE

"""What every tracker has to do, checked on a real process, with each tracker that works on this kernel."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from migrate.engine.kernel.probes import has_forced_reads
from migrate.engine.memory.pageset import PAGE
from tests.kernel.puppets import (
    ANONYMOUS,
    DONTNEED,
    FIXED,
    MAYMOVE,
    MREMAP_FIXED,
    NONE,
    PRIVATE,
    RW,
    SHARED,
    Mirror,
    Puppet,
    R,
)
from tests.kernel.tracking import file, mirror, puppet, sent

__all__ = ["file", "mirror", "puppet"]  # fixtures


def test_written_pages_and_no_others(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(64)
    for index in range(0, 64, 2):
        puppet.fill(start + index * PAGE, 1 + index)
    mirror.round()
    assert sent(mirror, start, 64) == set(range(0, 64, 2))
    mirror.check()
    puppet.fill(start + 4 * PAGE, 99)
    puppet.fill(start + 7 * PAGE + 123, 98, 1)
    puppet.look(start + 10 * PAGE)
    mirror.round()
    assert sent(mirror, start, 64) == {4, 7}
    mirror.round()
    assert sent(mirror, start, 64) == set()
    mirror.check()


def test_a_look_without_protection_forgets_nothing(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(4)
    puppet.fill(start, 1, 4 * PAGE)
    mirror.round()
    puppet.fill(start + PAGE, 2)
    mirror.tracker.scan(puppet.areas(), mirror.planner.held, protect=False)
    mirror.round(protect=False)
    assert sent(mirror, start, 4) == {1}
    mirror.check()


def test_writes_by_the_kernel(mirror: Mirror, puppet: Puppet) -> None:
    """read(2) into a protected page: faults of the kernel, in a userfaultfd for user mode only."""
    start = puppet.map(4)
    puppet.fill(start, 1, 4 * PAGE)
    zero = puppet.open("/dev/zero")
    mirror.round()
    assert puppet.call("getrandom", start + PAGE, 16, 0) == 16
    assert puppet.call("read", zero, start + 2 * PAGE + 5, PAGE) == PAGE
    mirror.round()
    assert sent(mirror, start, 4) == {1, 2, 3}
    mirror.check()


def test_a_page_that_changes_between_scan_and_reading_and_back(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(2)
    puppet.fill(start, 1)
    mirror.round(meanwhile=lambda: puppet.fill(start, 2))
    puppet.fill(start, 1)
    mirror.round()
    mirror.check()


def test_thrown_away_pages_are_erased_there(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(16)
    puppet.fill(start, 7, 16 * PAGE)
    mirror.round()
    puppet.madvise(start + 4 * PAGE, 4, DONTNEED)
    mirror.round()
    assert [tuple(run) for run in mirror.plan.drop if run.address >= start and run.address < start + 16 * PAGE] == [
        (start + 4 * PAGE, 4)
    ]
    mirror.check()
    puppet.look(start + 5 * PAGE)  # the zero page
    puppet.fill(start + 6 * PAGE, 3)
    mirror.round()
    mirror.check()


def test_zero_pages_never_travel(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(8)
    puppet.fill(start, 0, 8 * PAGE)
    puppet.fill(start, 5)
    mirror.round()
    assert {page for page in mirror.pages if start <= page < start + 8 * PAGE} == {start}
    puppet.fill(start, 0)
    mirror.round()
    assert start not in mirror.pages
    mirror.check()
    mirror.round()
    assert sent(mirror, start, 8) == set()  # known to be zero, and not read again
    puppet.fill(start + PAGE, 9)
    mirror.round()
    mirror.check()


def test_unmapped_and_mapped_anew(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(16)
    puppet.fill(start, 7, 16 * PAGE)
    mirror.round()
    puppet.call("munmap", start, 16 * PAGE)
    assert puppet.map(16, PRIVATE | ANONYMOUS | FIXED, at=start) == start
    puppet.fill(start + 3 * PAGE, 7)  # looks as it did
    puppet.fill(start + 4 * PAGE, 8)
    mirror.round()
    mirror.check()
    puppet.fill(start + 4 * PAGE, 9)
    mirror.round()
    assert sent(mirror, start, 16) == {4}
    mirror.check()


def test_moved_by_mremap(mirror: Mirror, puppet: Puppet) -> None:
    old, new = puppet.map(8), puppet.map(8)
    puppet.fill(old, 1, 8 * PAGE)
    puppet.fill(new, 2, 8 * PAGE)
    mirror.round()
    assert puppet.call("mremap", old, 8 * PAGE, 8 * PAGE, MAYMOVE | MREMAP_FIXED, new) == new
    mirror.round()
    mirror.check()
    puppet.fill(new + PAGE, 3)
    mirror.round()
    assert sent(mirror, new, 8) == {1}
    mirror.check()


def test_grown_by_mremap_and_brk(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(4)
    puppet.fill(start, 1, 4 * PAGE)
    top = puppet.syscall(12, 0)
    mirror.round()
    grown = puppet.call("mremap", start, 4 * PAGE, 12 * PAGE, MAYMOVE)
    puppet.fill(grown + 9 * PAGE, 4)
    puppet.syscall(12, top + 8 * PAGE)
    puppet.fill(top, 5, 8 * PAGE)
    mirror.round()
    mirror.check()


def test_read_only_and_inaccessible_memory(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(12)
    puppet.fill(start, 1, 12 * PAGE)
    puppet.call("mprotect", start, 4 * PAGE, R)
    puppet.call("mprotect", start + 4 * PAGE, 4 * PAGE, NONE)
    mirror.round()
    assert sent(mirror, start, 12) == set(range(12))
    mirror.check()
    puppet.call("mprotect", start, 8 * PAGE, RW)
    puppet.fill(start + 5 * PAGE, 2)
    puppet.call("mprotect", start, 8 * PAGE, NONE)
    mirror.round()
    assert sent(mirror, start, 12) == {5}
    mirror.check()


def test_taken_away_between_scan_and_reading(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(16)
    puppet.fill(start, 1, 16 * PAGE)
    mirror.round(meanwhile=lambda: (puppet.call("munmap", start + 4 * PAGE, 8 * PAGE), None)[1])
    assert mirror.pump.stats.vanished == 8
    mirror.round()
    mirror.check()


def test_closed_to_the_task_between_scan_and_reading(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(4)
    puppet.fill(start, 1, 4 * PAGE)
    mirror.round(meanwhile=lambda: (puppet.call("mprotect", start + PAGE, 2 * PAGE, NONE), None)[1])
    if not has_forced_reads():  # then they are read the next time, by its tracer
        assert mirror.pump.stats.vanished == 2
        mirror.round()
        assert sent(mirror, start, 4) == {1, 2}
    assert mirror.pump.stats.vanished == (0 if has_forced_reads() else 2)
    mirror.check()


def test_mapped_unmapped_and_replaced_between_maps_and_scan(mirror: Mirror, puppet: Puppet) -> None:
    """The scan sees, and protects, memory that nobody knows of yet."""
    room = puppet.map(64)
    puppet.fill(room, 1, 64 * PAGE)
    puppet.call("munmap", room + 16 * PAGE, 16 * PAGE)  # a hole that a walk reaches over
    mirror.round()

    def late() -> None:
        puppet.map(16, PRIVATE | ANONYMOUS | FIXED, at=room + 16 * PAGE)
        puppet.fill(room + 20 * PAGE, 2)
        puppet.call("munmap", room + 40 * PAGE, 8 * PAGE)
        puppet.map(8, SHARED | ANONYMOUS | FIXED, at=room + 48 * PAGE)
        puppet.fill(room + 50 * PAGE, 3)

    mirror.round(before=late)
    mirror.round()
    assert mirror.pages[room + 20 * PAGE] == b"\2" * PAGE
    mirror.check()


def test_nothing_is_left_in_the_task(mirror: Mirror, puppet: Puppet) -> None:
    flags = puppet.proc.text("smaps").count(" uw")
    before, descriptors = puppet.mappings(), puppet.descriptors()
    start = puppet.map(4)
    puppet.fill(start, 1)
    mirror.round()
    puppet.call("munmap", start, 4 * PAGE)
    assert puppet.descriptors() == descriptors
    mirror.tracker.close()
    assert puppet.mappings() == before
    assert puppet.proc.text("smaps").count(" uw") == flags == 0


def test_the_task_dies(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(4)
    puppet.fill(start, 1, 4 * PAGE)
    here = puppet.areas()
    scan = mirror.tracker.scan(here, mirror.planner.held)
    puppet.process.kill()
    puppet.process.wait()
    plan = mirror.planner.plan(scan, here)
    with pytest.raises(ProcessLookupError):
        list(mirror.pump.frames(plan, here))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_task_does(mirror: Mirror, puppet: Puppet, file: str, seed: int) -> None:
    """Random doings between rounds; after each round the mirror equals the task."""
    rng = random.Random(seed)
    fd, memfd = puppet.open(file), puppet.memfd(16)
    makers: list[Callable[[], int]] = [
        lambda: puppet.map(16),
        lambda: puppet.map(16, PRIVATE, fd=fd),
        lambda: puppet.map(16, SHARED | ANONYMOUS),
        lambda: puppet.map(16, SHARED, fd=memfd),
        lambda: puppet.map(16, PRIVATE, fd=memfd),
    ]
    regions = [make_one() for make_one in makers]
    shared = {regions[2], regions[3]}

    def act() -> None:
        at = rng.randrange(len(regions))
        start = regions[at]
        first = rng.randrange(16)
        count = rng.randint(1, 16 - first)
        where = start + first * PAGE
        match rng.randrange(9):
            case 0 | 1 | 2:
                puppet.fill(where, rng.randrange(256), count * PAGE)
            case 3:
                puppet.fill(where, 0, count * PAGE)
            case 4:
                puppet.madvise(where, count, DONTNEED)
            case 5:
                puppet.look(where)
            case 6:
                puppet.call("getrandom", where, 100, 0)
            case 7 if start not in shared:
                puppet.call("munmap", where, count * PAGE)
                puppet.map(count, PRIVATE | ANONYMOUS | FIXED, at=where)
            case 8 if start not in shared:
                # Move it out of the way, so that something else can come to be where it was. In one piece: see
                # writeprotect.py on mremap(2) of several VMAs.
                if any(m.start <= start and m.end >= start + 16 * PAGE for m in puppet.mappings()):
                    spot = puppet.map(16)
                    moved = puppet.syscall(25, start, 16 * PAGE, 16 * PAGE, MAYMOVE | MREMAP_FIXED, spot)
                    if moved == spot:
                        puppet.map(16, PRIVATE | ANONYMOUS | FIXED, at=start)
                        regions[at] = spot
                        regions.append(start)

    def nothing() -> None:
        pass

    for number in range(12):
        for _ in range(rng.randint(0, 12)):
            act()
        mirror.round(meanwhile=act if number % 3 == 1 else nothing, before=act if number % 4 == 3 else nothing)
        if number % 3 != 1 and number % 4 != 3:
            mirror.check()
    act()
    mirror.round(protect=False)
    mirror.check()

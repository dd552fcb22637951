"""The same of memory of other kinds: of files, shared, in huge pages, with holes, in thousands of areas."""

from __future__ import annotations

import os

from migrate.engine.memory.codec import Compress
from migrate.engine.memory.pageset import PAGE
from migrate.engine.memory.softdirty import SoftDirtyTracker
from migrate.engine.memory.writeprotect import WriteProtectTracker
from tests.kernel import features
from tests.kernel.puppets import (
    ANONYMOUS,
    DONTNEED,
    GUARD_INSTALL,
    GUARD_REMOVE,
    HUGEPAGE,
    NORESERVE,
    PRIVATE,
    REMOVE,
    SHARED,
    Mirror,
    Puppet,
    R,
)
from tests.kernel.tracking import KINDS, file, make, mirror, puppet, sent, written

__all__ = ["file", "mirror", "puppet"]  # fixtures


def test_written_pages_of_a_private_file_mapping(mirror: Mirror, puppet: Puppet, file: str) -> None:
    start = puppet.map(16, PRIVATE, fd=puppet.open(file))
    puppet.look(start)
    puppet.fill(start + 2 * PAGE, 1)
    puppet.fill(start + 3 * PAGE, 0)  # a zero page, over one that is not zero in the file
    mirror.round()
    assert sent(mirror, start, 16) == {2, 3}
    mirror.check()
    puppet.madvise(start + 2 * PAGE, 1, DONTNEED)  # the file's page again
    puppet.fill(start + 5 * PAGE, 9)
    mirror.round()
    mirror.check()
    puppet.look(start + 2 * PAGE)
    mirror.round()
    assert 5 not in sent(mirror, start, 16)
    mirror.check()


def test_shared_anonymous_memory(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(16, SHARED | ANONYMOUS)
    puppet.fill(start, 1, 4 * PAGE)
    mirror.round()
    assert sent(mirror, start, 16) == {0, 1, 2, 3}
    puppet.fill(start + PAGE, 2)
    puppet.madvise(start, 3, DONTNEED)  # out of the page tables, not out of the object
    mirror.round()
    assert 1 in written(mirror, start, 16)
    mirror.check()
    puppet.madvise(start, 2, REMOVE)
    mirror.round()
    assert [tuple(run) for run in mirror.plan.punch] == [(start, 2)]
    mirror.check()
    puppet.fill(start + 8 * PAGE, 3)
    mirror.round()
    assert 8 in sent(mirror, start, 16)
    mirror.check()


def test_a_write_then_a_fresh_look_at_shared_memory(mirror: Mirror, puppet: Puppet) -> None:
    """Written, thrown out of the page tables and read again: a new entry there, and no trace of the write."""
    start = puppet.map(4, SHARED | ANONYMOUS)
    puppet.fill(start, 1, 4 * PAGE)
    mirror.round()
    puppet.fill(start + PAGE, 2)
    puppet.madvise(start, 4, DONTNEED)
    puppet.look(start + PAGE)
    mirror.round()
    assert 1 in sent(mirror, start, 4)
    mirror.check()


def test_a_memfd_written_to_by_descriptor_and_mapped_twice(mirror: Mirror, puppet: Puppet) -> None:
    fd = puppet.memfd(8)
    one = puppet.map(8, SHARED, fd=fd)
    two = puppet.map(8, SHARED, fd=fd)
    puppet.fill(one, 1, 2 * PAGE)
    mirror.round()  # and no check here: reading holes of shared memory fills them
    puppet.fill(two + PAGE, 2)
    source = puppet.map(1)
    puppet.fill(source, 3)
    assert puppet.call("pwrite64", fd, source, PAGE, 4 * PAGE) == PAGE
    mirror.round()
    assert sent(mirror, min(one, two), 8) == {1, 4}
    mirror.check()


def test_shared_file_mappings_stay(mirror: Mirror, puppet: Puppet, file: str) -> None:
    fd = puppet.open(file, os.O_RDWR)
    start = puppet.map(16, SHARED, fd=fd)
    reader = puppet.map(16, SHARED, R, fd=puppet.open(file))
    puppet.fill(start, 1)
    mirror.round()
    assert sent(mirror, start, 16) == set()
    assert sent(mirror, reader, 16) == set()
    mirror.check()


def test_huge_pages_are_tracked_page_by_page(mirror: Mirror, puppet: Puppet) -> None:
    room = puppet.map(1536)
    start = -(-room // (2 << 20)) * (2 << 20)
    puppet.madvise(start, 512, HUGEPAGE)
    puppet.fill(start, 1, 2 << 20)
    mirror.round()
    assert sent(mirror, start, 512) == set(range(512))
    puppet.fill(start + 77 * PAGE, 2)
    mirror.round()
    if isinstance(mirror.tracker, SoftDirtyTracker):
        # a huge page has one bit for all of it, and write faults do not split it (wp_huge_pmd, mm/memory.c)
        assert sent(mirror, start, 512) in ({77}, set(range(512)))
    else:
        assert sent(mirror, start, 512) == {77}
    mirror.check()


@features.guard_regions
def test_guard_pages(mirror: Mirror, puppet: Puppet) -> None:
    start = puppet.map(8)
    puppet.fill(start, 1, 8 * PAGE)
    mirror.round()
    puppet.madvise(start + 2 * PAGE, 2, GUARD_INSTALL)
    mirror.round()
    assert [tuple(run) for run in mirror.plan.drop] == [(start + 2 * PAGE, 2)]
    mirror.check()
    puppet.madvise(start + 2 * PAGE, 2, GUARD_REMOVE)
    puppet.fill(start + 2 * PAGE, 5)
    mirror.round()
    mirror.check()


def test_a_reservation_of_terabytes(mirror: Mirror, puppet: Puppet) -> None:
    size = 1 << 33 if isinstance(mirror.tracker, WriteProtectTracker) else 1 << 20
    start = puppet.map(size, PRIVATE | ANONYMOUS | NORESERVE)
    puppet.fill(start + (size // 2) * PAGE, 1)
    mirror.round()
    assert mirror.pages[start + (size // 2) * PAGE] == b"\1" * PAGE
    assert len(mirror.planner.held) < 1 << 16


def test_ten_thousand_areas(puppet: Puppet) -> None:
    """Nothing may be done for each area that can be done for all."""
    start = puppet.map(20000)
    puppet.fill(start, 1, 20000 * PAGE)
    for index in range(0, 20000, 2):
        puppet.call("mprotect", start + index * PAGE, PAGE, R)
    mirror = Mirror(puppet, make(KINDS[-1], puppet))
    try:
        here = puppet.areas()
        assert len(here) > 20000
        scan = mirror.tracker.scan(here, mirror.planner.held)
        assert len(mirror.planner.plan(scan, here).send) < 100
        assert len(scan.written.clip([(start, start + 20000 * PAGE)])) == 20000
    finally:
        mirror.close()


def test_compressed_frames(puppet: Puppet) -> None:
    mirror = Mirror(puppet, make(KINDS[-1], puppet), Compress.AUTO)
    try:
        start = puppet.map(2048)
        puppet.fill(start, 1, 1024 * PAGE)
        for index in range(1024, 2048, 128):
            puppet.call("getrandom", start + index * PAGE, 128 * PAGE, 0)
        mirror.round()
        mirror.check()
        assert mirror.pump.stats.bytes_out < 1.2 * 1024 * PAGE + 2000 * PAGE
    finally:
        mirror.close()

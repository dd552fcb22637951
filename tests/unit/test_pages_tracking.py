"""The account of a migration's memory, the decoding of pagemap, and when compressing pays."""

from __future__ import annotations

import os
import struct

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.kernel import pagemap
from migrate.engine.memory.area import Area, Content
from migrate.engine.memory.codec import Compress, Compressor
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.planner import Plan, RoundPlanner, Run
from migrate.engine.memory.pump import FRAME_PAGES, batches
from migrate.engine.memory.softdirty import written
from migrate.engine.memory.tracker import Scan

ANON = Area(0, 64 * PAGE, Content.ANONYMOUS, True)
HIDDEN = Area(64 * PAGE, 96 * PAGE, Content.ANONYMOUS, False)
SHARED = Area(96 * PAGE, 128 * PAGE, Content.SHARED, True, (0, 1, 2))
AREAS = [ANON, HIDDEN, SHARED]


def pages(*numbers: int) -> PageSet:
    return PageSet((number * PAGE, (number + 1) * PAGE) for number in numbers)


def runs(found: list[Run]) -> list[tuple[int, int]]:
    return [(run.address // PAGE, run.pages) for run in found]


def send(planner: RoundPlanner, plan: Plan) -> None:
    for address, count in [*plan.send, *plan.forced]:
        planner.sent([(address, count)])


def test_what_is_owed_is_sent_once() -> None:
    planner = RoundPlanner()
    plan = planner.plan(Scan(written=pages(1, 2, 5, 70, 100)), AREAS)
    assert (runs(plan.send), runs(plan.forced), plan.pages) == ([(1, 2), (5, 1), (100, 1)], [(70, 1)], 5)
    send(planner, plan)
    assert planner.held == pages(1, 2, 5, 70, 100)
    assert planner.plan(Scan(), AREAS) == Plan()


def test_what_was_not_sent_stays_owed() -> None:
    planner = RoundPlanner()
    planner.plan(Scan(written=pages(1, 2)), AREAS)
    planner.sent([(PAGE, 1)])
    assert runs(planner.plan(Scan(), AREAS).send) == [(2, 1)]


def test_what_is_gone_is_erased_in_its_way() -> None:
    planner = RoundPlanner()
    send(planner, planner.plan(Scan(written=pages(1, 2, 70, 100, 101)), AREAS))
    plan = planner.plan(Scan(gone=pages(2, 70, 101)), AREAS)
    assert (runs(plan.drop), runs(plan.punch)) == ([(2, 1), (70, 1)], [(101, 1)])
    assert planner.held == pages(1, 100)
    assert planner.plan(Scan(gone=pages(2)), AREAS) == Plan()


def test_written_and_gone_is_gone() -> None:
    planner = RoundPlanner()
    send(planner, planner.plan(Scan(written=pages(1)), AREAS))
    plan = planner.plan(Scan(written=pages(1), gone=pages(1)), AREAS)
    assert (runs(plan.send), runs(plan.drop)) == ([], [(1, 1)])


def test_pages_of_memory_that_was_mapped_meanwhile_wait_for_their_area() -> None:
    planner = RoundPlanner()
    late = Area(200 * PAGE, 210 * PAGE, Content.ANONYMOUS, True)
    assert planner.plan(Scan(written=pages(1, 203)), AREAS).pages == 1
    assert planner.plan(Scan(), AREAS).pages == 1
    plan = planner.plan(Scan(), [*AREAS, late])
    assert runs(plan.send) == [(1, 1), (203, 1)]


def test_unmapped_areas_are_forgotten() -> None:
    planner = RoundPlanner()
    send(planner, planner.plan(Scan(written=pages(1, 100)), AREAS))
    assert planner.plan(Scan(), [ANON]) == Plan()
    assert planner.held == pages(1)


def test_what_is_mapped_anew_there_is_sent_again() -> None:
    planner = RoundPlanner()
    send(planner, planner.plan(Scan(written=pages(1, 2, 3)), AREAS))
    planner.remapped(2 * PAGE, 3 * PAGE)
    assert planner.held == pages(1, 3)
    plan = planner.plan(Scan(), AREAS)
    assert (runs(plan.send), plan.drop) == ([(2, 1)], [])


def test_zero_pages() -> None:
    planner = RoundPlanner()
    planner.plan(Scan(written=pages(1, 2)), AREAS)
    assert planner.blank(PAGE) is False
    planner.sent([(2 * PAGE, 1)])
    assert planner.plan(Scan(), AREAS) == Plan()
    planner.plan(Scan(written=pages(2)), AREAS)
    assert planner.blank(2 * PAGE) is True
    assert not planner.held
    assert planner.plan(Scan(gone=pages(1, 2)), AREAS) == Plan()


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 900)), max_size=8))
def test_batches_fit_a_frame_and_lose_nothing(spans: list[tuple[int, int]]) -> None:
    given_runs = [Run(start * PAGE, count) for start, count in spans]
    found = list(batches(given_runs))
    flat = [a for batch in found for run in batch for a in range(run.address, run.address + run.pages * PAGE, PAGE)]
    assert flat == [page for run in given_runs for page in range(run.address, run.address + run.pages * PAGE, PAGE)]
    sizes = [sum(run.pages for run in batch) for batch in found]
    assert all(size == FRAME_PAGES for size in sizes[:-1])
    assert all(0 < size <= FRAME_PAGES for size in sizes)


# pagemap: bit 63 present, 62 swapped, 61 file, 58 guard, 57 write-protected, 55 soft-dirty
ENTRIES = {
    0: (0, 0, 0, 0),
    1 << 63 | 0x1234: (1, 1, 0, 0),
    1 << 63 | 1 << 55: (1, 1, 0, 1),
    1 << 63 | 1 << 61 | 1 << 55: (1, 0, 0, 1),
    1 << 62 | 5: (1, 1, 0, 0),
    1 << 62 | 1 << 58: (0, 0, 1, 0),
    1 << 63 | 1 << 57 | 1 << 56: (1, 1, 0, 0),
    1 << 55: (0, 0, 0, 1),
}


def test_entries_of_pagemap() -> None:
    raw = b"".join(struct.pack("<Q", entry) for entry in ENTRIES)
    rows = list(ENTRIES.values())
    assert list(pagemap.populated(raw)) == [row[0] for row in rows]
    assert list(pagemap.anonymous(raw)) == [row[1] for row in rows]
    assert list(pagemap.guarded(raw)) == [row[2] for row in rows]
    assert list(pagemap.soft_dirty(raw)) == [row[3] for row in rows]
    assert list(written(raw, pagemap.populated(raw))) == [row[0] & row[3] for row in rows]
    assert written(b"", b"") == b""


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=50))
def test_any_entries_of_pagemap(entries: list[int]) -> None:
    raw = b"".join(struct.pack("<Q", entry) for entry in entries)
    there = [int(bool(e >> 62 & 3) and not e >> 58 & 1) for e in entries]
    assert list(pagemap.populated(raw)) == there
    assert list(pagemap.anonymous(raw)) == [int(t and not e >> 61 & 1) for t, e in zip(there, entries, strict=True)]
    assert list(written(raw, pagemap.populated(raw))) == [t & e >> 55 & 1 for t, e in zip(there, entries, strict=True)]


NOISE = memoryview(os.urandom(1 << 18))
TEXT = memoryview(b"all work and no play " * 12000)


def test_never_and_always() -> None:
    assert Compressor(Compress.NONE)(TEXT) is None
    always = Compressor(Compress.LZ4)
    block = always(TEXT)
    assert block is not None
    assert lz4.block.decompress(block, uncompressed_size=len(TEXT)) == bytes(TEXT)
    assert always(NOISE) is None  # it would only grow


@pytest.mark.parametrize(
    ("rate", "contents", "pays"),
    [(None, TEXT, True), (None, NOISE, False), (1e6, TEXT, True), (1e6, NOISE, False), (1e15, TEXT, False)],
)
def test_auto_weighs_the_link(rate: float | None, contents: memoryview, pays: bool) -> None:
    auto = Compressor(Compress.AUTO, lambda: rate)
    assert [auto(contents) is not None for _ in range(3)] == [pays] * 3


def test_auto_changes_its_mind() -> None:
    auto = Compressor(Compress.AUTO, lambda: 1e6)
    assert [auto(NOISE) is not None for _ in range(31)] == [False] * 31
    assert [auto(TEXT) is not None for _ in range(3)] == [False, True, True]

"""PageSet against Python's own sets of page numbers."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.memory.pageset import CHUNK, PAGE, PageSet

# Around the borders of chunks, where mistakes live.
page = st.one_of(st.integers(0, 40), st.integers(CHUNK - 20, CHUNK + 20), st.integers(3 * CHUNK - 5, 3 * CHUNK + 5))
span = st.tuples(page, st.one_of(st.integers(1, 30), st.integers(CHUNK - 2, 2 * CHUNK + 2)))
spans = st.lists(span, max_size=6)


def pages_of(found: list[tuple[int, int]]) -> set[int]:
    return {page for start, count in found for page in range(start, start + count)}


def make(found: list[tuple[int, int]]) -> PageSet:
    return PageSet((start * PAGE, (start + count) * PAGE) for start, count in found)


def content(pages: PageSet) -> set[int]:
    return {p for address, count in pages.runs() for p in range(address // PAGE, address // PAGE + count)}


@given(spans, spans)
def test_algebra(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x, y = pages_of(a), pages_of(b)
    assert content(make(a) & make(b)) == x & y
    assert content(make(a) | make(b)) == x | y
    assert content(make(a) - make(b)) == x - y
    assert len(make(a)) == len(x)
    assert bool(make(a) - make(b)) == bool(x - y)
    assert (make(a) | make(b)) - make(b) == make(a) - make(b)


@given(spans)
def test_runs_are_maximal_and_sorted(a: list[tuple[int, int]]) -> None:
    expected = []
    for _, group in groupby(enumerate(sorted(pages_of(a))), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        expected.append((run[0] * PAGE, len(run)))
    assert list(make(a).runs()) == expected


@given(spans, span)
def test_discard_and_membership(a: list[tuple[int, int]], gone: tuple[int, int]) -> None:
    pages = make(a)
    pages.discard(gone[0] * PAGE, (gone[0] + gone[1]) * PAGE)
    expected = pages_of(a) - pages_of([gone])
    assert content(pages) == expected
    assert all(p * PAGE in pages for p in expected)
    assert not any(p * PAGE in pages for p in pages_of([gone]))
    assert all(1 in chunk for chunk in pages.chunks.values())


@given(spans, st.lists(page, min_size=0, max_size=8, unique=True))
def test_clip(a: list[tuple[int, int]], borders: list[int]) -> None:
    borders.sort()
    ranges = list(zip(borders[::2], borders[1::2], strict=False))
    expected = pages_of(a) & {p for low, high in ranges for p in range(low, high)}
    assert content(make(a).clip([(low * PAGE, high * PAGE) for low, high in ranges])) == expected


def test_the_operands_are_left_alone() -> None:
    a, b = make([(0, 4)]), make([(2, 4)])
    union = a | b
    union.discard(0, PAGE)
    difference = a - make([(CHUNK, 1)])
    difference.discard(0, 100 * PAGE)
    assert content(a) == {0, 1, 2, 3}
    assert content(b) == {2, 3, 4, 5}


def test_a_huge_reservation_costs_what_is_in_it() -> None:
    pages = make([(5, 2), (1 << 32, 1)])
    assert content(pages.clip([(0, 1 << 46)])) == {5, 6, 1 << 32}
    pages.discard(6 * PAGE, 1 << 46)
    assert content(pages) == {5}


def test_a_dense_gigabyte() -> None:
    """262,144 pages of which every eighth was written."""
    gigabyte = PageSet([(0, 1 << 30)])
    written = PageSet((address, address + PAGE) for address in range(0, 1 << 30, 8 * PAGE))
    assert len(gigabyte - (gigabyte & written)) == 262144 - 32768

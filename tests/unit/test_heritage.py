"""What a restoree keeps of the memory of the one that has begotten it, and by what pages are known to be the same."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from migrate.engine.descent import Descent
from migrate.engine.kernel.maps import proportional
from migrate.engine.kernel.pagemap import same_frames
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kin import Kin
from migrate.engine.kinds import address_space as space
from migrate.engine.kinds.heritage import inherited
from migrate.engine.memory.layout import TASK_SIZE
from migrate.engine.overseer import Hole
from migrate.engine.program import Program
from tests.unit.test_vma import LIBRARY, THING, area

PRESENT, SWAPPED, FILE, EXCLUSIVE, PROTECTED, DIRTY = (1 << bit for bit in (63, 62, 61, 56, 57, 55))


def test_areas_that_coincide() -> None:
    one, two, three = area(1, 5), area(10, 12, backing=LIBRARY), area(20, 30, prot=1, flags="mr mw me rd")
    assert inherited([one, two, three], (), [one, two, three]) == [(a.start, a.end) for a in (one, two, three)]
    assert inherited([one, two, three], [two.start], [one, two]) == [(one.start, one.end)]
    assert inherited([], (), [one]) == inherited([one], (), []) == []


def test_a_part_of_what_the_parent_has() -> None:
    parent = [area(1, 9), area(12, 20)]
    assert inherited(parent, (), [area(2, 4), area(6, 9), area(12, 20)]) == [
        (2 << 12, 4 << 12), (6 << 12, 9 << 12), (12 << 12, 20 << 12)
    ]  # fmt: skip
    assert inherited(parent, (), [area(1, 10)]) == inherited(parent, (), [area(8, 13)]) == []


@pytest.mark.parametrize(
    "different",
    [
        {"shared": True},
        {"backing": LIBRARY},
        {"backing": THING},
        {"flags": "ac gd me mr mw rd wr"},
        {"flags": "ac dc me mr mw rd wr"},
        {"flags": "ac me mr mw rd wf wr"},
        {"flags": "dd dp me mr mw rd wf wr"},
        {"name": "[anon:x]"},
        {"prot": 1, "flags": "me mr mw rd"},
    ],
)
def test_areas_that_do_not(different: dict[str, Any]) -> None:
    assert inherited([area(1, 5)], (), [replace(area(1, 5), **different)]) == []


@pytest.mark.parametrize("flags", ["ac dc me mr mw rd wr", "ac me mr mw rd wf wr"])
def test_what_a_fork_does_not_give(flags: str) -> None:
    assert inherited([area(1, 5, flags=flags)], (), [area(1, 5, flags=flags)]) == []


def test_neighbours_that_could_be_one() -> None:
    apart = [area(1, 5), area(5, 9)]
    for parent in (apart, [area(1, 9)]):
        assert inherited(parent, (), apart) == [(1 << 12, 5 << 12), (5 << 12, 9 << 12)]


def test_all_else_is_unmapped() -> None:
    hole = Hole(0x10_0000_0000, 64 << 20)
    vmas = [area(1, 9), area(12, 20, backing=LIBRARY, offset=4096)]
    kept = [(2 << 12, 4 << 12), (14 << 12, 16 << 12)]
    assert space.compile_kept(vmas, kept) == [area(2, 4), area(14, 16, backing=LIBRARY, offset=3 * 4096)]
    program = Program("inherit")
    space.compile_inherit(program, kept, (), hole)
    gone = [op.label.split(",")[0] for op in program.branches[0] if op.name == "munmap"]
    bounds = [0, 2, 4, 14, 16, hole.start >> 12, hole.end >> 12, TASK_SIZE >> 12]
    assert gone == [f"{low << 12:x}-{high << 12:x}" for low, high in zip(bounds[::2], bounds[1::2], strict=True)]


def test_frames() -> None:
    def frames(*entries: int) -> bytes:
        return struct.pack(f"<{len(entries)}Q", *entries)

    one = frames(PRESENT | 7, PRESENT | 7, PRESENT | 1 << 54, PRESENT | 7 | FILE, PRESENT | 7 | EXCLUSIVE, 0, 7)
    other = frames(PRESENT | 7 | PROTECTED | DIRTY, PRESENT | 8, PRESENT, PRESENT | 7 | FILE, PRESENT | 7, 0, 7)
    assert same_frames(one, other).to_bytes(7, "little") == bytes([1, 0, 0, 0, 0, 0, 0])
    swapped = frames(SWAPPED | 9)
    assert same_frames(swapped, swapped) == 0


def test_memory_of_a_process_that_shares_some() -> None:
    rollup = "00400000-7fff00000000 ---p 00000000 00:00 0 [rollup]\nRss:  900 kB\nPss:  512 kB\nPss_Dirty:  4 kB\n"
    assert proportional(rollup) == 512
    with pytest.raises(ProcFormatError):
        proportional("Rss: 4 kB\n")


def test_generations() -> None:
    tree = [Kin(10 + position, parent) for position, parent in enumerate((-1, 0, 1, 0, 2, 3))]
    assert list(Descent(tree).generations()) == [[0], [1, 3], [2, 5], [4]]

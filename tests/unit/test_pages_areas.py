"""What travels, by the lines of maps; which areas can be tracked, and which are walked together."""

from __future__ import annotations

from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.memory.area import Area, Content, areas, content_of, merged, of, sort_out
from migrate.engine.memory.pageset import PageSet
from migrate.engine.memory.writeprotect import Hollow, _spans

TEXT = """\
400000-401000 r--p 00000000 fe:00 11 /bin/job
401000-402000 rw-p 00001000 fe:00 11 /bin/job
500000-600000 rw-p 00000000 00:00 0 [heap]
700000-708000 rw-s 00000000 00:01 5 /dev/zero (deleted)
708000-710000 rw-s 00000000 00:01 6 /memfd:x (deleted)
710000-718000 rw-s 00000000 fe:00 12 /data
718000-720000 ---s 00000000 00:01 7 [anon_shmem:named]
720000-728000 rw-s 00000000 00:01 8 /SYSV00000000 (deleted)
728000-730000 ---p 00000000 00:00 0
7fff00000000-7fff00004000 r--p 00000000 00:00 0 [vvar]
7fff00004000-7fff00006000 r--p 00000000 00:00 0 [vvar_vclock]
7fff00006000-7fff00008000 r-xp 00000000 00:00 0 [vdso]
"""
SHARED, ANON, FILE, NOTHING = Content.SHARED, Content.ANONYMOUS, Content.PRIVATE_FILE, Content.NOTHING


def test_contents() -> None:
    found = [area.content for area in areas(maps(TEXT))]
    assert found == [FILE, FILE, ANON, SHARED, SHARED, NOTHING, SHARED, SHARED, ANON, NOTHING, NOTHING, NOTHING]
    assert not areas(maps(TEXT))[8].readable


def test_droppable_memory_stays() -> None:
    heap = maps(TEXT)[2]
    assert content_of(heap, {"rd", "dp"}) is NOTHING
    assert content_of(heap, {"rd", "wf"}) is ANON  # zero in a child of fork(2), and we are none
    assert areas([heap], droppable={heap.start})[0].content is NOTHING


def shared(start: int, size: int, inode: int, offset: int = 0, unshared: bool = True) -> Area:
    return Area(start, start + size, SHARED, True, (0, 1, inode), offset, unshared)


def test_shared_memory_is_tracked_only_if_its_vma_is_the_only_way_to_it() -> None:
    lone = shared(0x1000, 0x4000, 1)
    split = [shared(0x10000, 0x2000, 2), shared(0x12000, 0x2000, 2, 0x2000)]
    memfd = shared(0x20000, 0x4000, 3, unshared=False)
    doubled = [shared(0x30000, 0x4000, 4), shared(0x40000, 0x4000, 4)]
    overlapping = [shared(0x50000, 0x4000, 5), shared(0x60000, 0x4000, 5, 0x2000)]
    tracked, compared = sort_out([lone, *split, memfd, *doubled, *overlapping])
    assert tracked == [lone, *split]
    assert compared == [memfd, doubled[0], *overlapping]


def test_spans_are_few_and_hold_nothing_else() -> None:
    big = 4 << 20
    here = [
        Area(0, 0x1000, FILE, True),
        Area(0x1000, 0x2000, ANON, True),  # small, between files
        Area(0x5000, 0x6000, FILE, True),
        Area(big, 3 * big, ANON, True),
        Area(3 * big, 3 * big + 0x1000, ANON, True),
        Area(4 * big, 5 * big, NOTHING, True),
        Area(5 * big, 6 * big, ANON, True),
        Area(7 * big, 7 * big + 0x1000, FILE, True),
    ]
    assert [tuple(span) for span in _spans(here)] == [
        (0, 0x6000, [(0, 0x1000), (0x5000, 0x6000)]),
        (big, 3 * big + 0x1000, []),
        (5 * big, 6 * big, []),
        (7 * big, 7 * big + 0x1000, [(7 * big, 7 * big + 0x1000)]),
    ]


def test_a_hollow_of_terabytes() -> None:
    hollow = Hollow()
    hollow.add(0x1000, 0x3000)
    hollow.add(0x10000000, 1 << 46)
    pages = PageSet([(0, 0x2000), (0x0FFFF000, 0x10001000), (1 << 45, (1 << 45) + 0x1000)])
    assert hollow.among(pages) == PageSet([(0x1000, 0x2000), (0x10000000, 0x10001000), (1 << 45, (1 << 45) + 0x1000)])


def test_ranges() -> None:
    assert merged([(0, 1), (1, 2), (3, 4), (4, 9)]) == [(0, 2), (3, 9)]
    assert of(FILE, areas(maps(TEXT))) == [(0x400000, 0x402000)]


def test_mapping_helpers() -> None:
    mapping = maps(TEXT)[3]
    assert mapping == Mapping(0x700000, 0x708000, "rw-s", 0, 0, 1, 5, "/dev/zero", True)
    assert (mapping.pages, mapping.size) == (8, 0x8000)
    assert mapping.shared and mapping.file and mapping.writable

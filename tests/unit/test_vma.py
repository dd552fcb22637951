"""What VMAs are made of, which of them the kernel would merge, and what programs are compiled for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.kernel.maps import Mapping
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kinds import address_space as space
from migrate.engine.kinds import mempolicy
from migrate.engine.kinds.mapping import Bridges
from migrate.engine.kinds.mm import MM
from migrate.engine.kinds.vma import FILE, MEMFD, VMA, Backing, coalesce, displaced, memfds, mergeable, refusal
from migrate.engine.memory.layout import LOWEST, TASK_SIZE, NoRoom, choose_hole, collides, free_range, gaps, park
from migrate.engine.overseer import Hole
from migrate.engine.program import Program

HOLE = Hole(0x10_0000_0000, 64 << 20)
RW = "ac me mr mw rd wr"
LIBRARY = Backing(FILE, 1, 2, "/lib/x.so", 1 << 20, 5)
THING = Backing(MEMFD, 1, 3, "thing", 8192, 0, seals=6)


def area(start: int, end: int, prot: int = 3, flags: str = RW, **more: Any) -> VMA:
    plain = VMA(start << 12, end << 12, prot, False, None, 0, "", flags)
    return replace(plain, **more)


def names(program: Program) -> list[str]:
    return [op.name for op in program.branches[0] if op.name]


def test_neighbours_that_would_merge() -> None:
    low, high = area(1, 2), area(2, 3)
    assert mergeable(low, high)
    assert mergeable(replace(low, name="[heap]"), high)  # that name is of the place
    assert mergeable(low, replace(high, flags=RW.replace("ac", "ac gu")))
    assert not mergeable(low, area(3, 4))
    others: dict[str, Any] = {"prot": 1, "flags": RW + " dc", "name": "[anon:x]", "policy": "bind:0", "pkey": 1}
    for key, value in others.items():
        assert not mergeable(low, area(2, 3, **{key: value})), key
    low, high = (area(1, 2, backing=LIBRARY), area(2, 3, backing=LIBRARY, offset=4096))
    assert mergeable(low, high)
    assert not mergeable(low, replace(high, offset=8192))
    assert not mergeable(low, area(2, 3))


def test_every_other_one_of_a_chain_is_displaced() -> None:
    chain = [area(i, i + 1) for i in range(5)]
    assert displaced(chain) == {1 << 12, 3 << 12}
    assert displaced(chain[::2]) == set()


def test_write_tracking_splits_nothing() -> None:
    heap = [area(1, 4, name="[heap]"), area(4, 6, name="[heap]")]
    assert coalesce(heap, {1 << 12}) == [area(1, 6, name="[heap]")]
    assert coalesce(heap, {1 << 12, 4 << 12}) == heap  # both tracked, and two all the same
    assert coalesce(heap, set()) == heap


@pytest.mark.parametrize(
    ("vma", "prot"),
    [
        (area(1, 2), 3),
        (area(1, 2, 7, "ac ex me mr mw rd wr"), 3),
        (area(1, 2, 0, "me mr mw"), 0),  # never writable: nothing in it
        (area(1, 2, 0, "ac me mr mw"), 3),
        (area(1, 2, 0, "me mr mw nr"), 3),
        (area(1, 2, 5, "ex me mr mw rd", backing=LIBRARY), 5),
        (area(1, 2, 1, "ac me mr mw rd", backing=LIBRARY), 3),  # relocated
        (area(1, 2, 1, "me mr ms mw rd sh", backing=LIBRARY, shared=True), 1),
        (area(1, 2, 1, "me mr ms mw rd sh", backing=THING, shared=True), 3),
        (area(1, 2, 1, "me mr ms rd", backing=THING, shared=True), 1),  # sealed against writing
    ],
)
def test_protection_for_filling(vma: VMA, prot: int) -> None:
    assert vma.fill_prot == prot


@pytest.mark.parametrize(
    ("path", "inode", "deleted", "flags", "what"),
    [
        ("/SYSV0000002a", 0, True, "ht", "huge pages"),
        ("/anon_hugepage", 5, True, "ht", "huge pages"),
        ("", 0, False, "ss", "shadow stack"),
        ("", 0, False, "um", "userfaultfd"),
        ("/dev/kvm", 7, False, "io pf", "memory of a device (/dev/kvm)"),
        ("anon_inode:[io_uring]", 9, False, "", "io_uring"),
        ("/[aio]", 9, True, "", "asynchronous I/O"),
        ("/secretmem", 9, True, "", "secret memory"),
        ("[uprobes]", 0, False, "", "[uprobes]"),
    ],
)
def test_refused_by_name(path: str, inode: int, deleted: bool, flags: str, what: str) -> None:
    problem = refusal(Mapping(0x1000, 0x2000, "rw-p", 0, 0, 1, inode, path, deleted), flags.split(), "pid 7")
    assert problem is not None and what in problem.what and problem.where == "pid 7 1000-2000"


@pytest.mark.parametrize("path", ["", "[heap]", "[stack]", "[anon:x]", "[vdso]", "[vvar]", "[vsyscall]"])
def test_not_refused(path: str) -> None:
    mapping = Mapping(0x1000, 0x2000, "rw-p", 0, 0, 0, 0, path, False)
    assert refusal(mapping, ["pf", "io"] if path == "[vvar]" else [], "pid 7") is None


def test_memory_policies() -> None:
    text = (
        "7f00 default file=/x\\040y mapped=2 N0=2\n8000 bind:0\n9000 prefer (many):0-1,3 anon=1\n"
        "a000 interleave=static|balancing:1 stack\nb000 local\n"
    )
    shown = mempolicy.numa_maps(text)
    assert shown == {
        0x8000: "bind:0", 0x9000: "prefer (many):0-1,3", 0xA000: "interleave=static|balancing:1", 0xB000: "local"
    }  # fmt: skip
    parsed = [mempolicy.parse(policy) for policy in shown.values()]
    assert parsed == [(2, 1), (5, 0b1011), (3 | 1 << 15 | 1 << 13, 2), (4, 0)]
    for wrong in ("bound:0", "bind:x", "bind=odd:0"):
        with pytest.raises(ProcFormatError):
            mempolicy.parse(wrong)


# Where the restorer lives


@given(st.lists(st.tuples(st.integers(0, TASK_SIZE - 1), st.integers(1, 1 << 44)), max_size=30))
def test_hole_is_free(pairs: list[tuple[int, int]]) -> None:
    used = [(start & -4096, min((start + size) & -4096, TASK_SIZE)) for start, size in pairs]
    used = [(start, end) for start, end in used if start < end]
    try:
        hole = choose_hole(used, 64 << 20)
    except NoRoom:
        assert all(end - start < 128 << 20 for start, end in gaps(used))
        return
    low, high = hole.start - (8 << 20), park(hole)[1] + (8 << 20)
    assert low >= LOWEST and high <= TASK_SIZE
    assert not any(start < high and low < end for start, end in used)
    assert not collides(hole, used)
    assert collides(hole, [*used, (park(hole)[0], park(hole)[1])])


def test_no_room() -> None:
    with pytest.raises(NoRoom):
        choose_hole([(0, TASK_SIZE)], 1 << 20)
    assert free_range([(LOWEST, LOWEST + 4096)], 8192) == LOWEST + 8192
    with pytest.raises(NoRoom):
        free_range([(0, TASK_SIZE)], 4096)


# Programs


def test_one_open_for_all_of_a_file() -> None:
    parts = [area(i, i + 1, 1, "me mr mw rd", backing=LIBRARY, offset=(i - 1) * 4096) for i in (1, 3, 5)]
    program = Program("x")
    space.compile_map(program, parts, HOLE)
    assert names(program) == ["openat", "mmap", "mmap", "mmap", "close"]


def test_files_that_must_stay_apart_are_opened_twice() -> None:
    parts = [area(i, i + 1, backing=LIBRARY, offset=(i - 1) * 4096) for i in (1, 2)]
    program = Program("x")
    space.compile_map(program, parts, HOLE)
    assert names(program) == ["openat", "mmap", "close"] * 2


def test_memfd_gets_its_number_and_its_seals() -> None:
    parts = [area(1, 3, flags="me mr ms mw rd sh wr", backing=THING, shared=True)]
    assert memfds(parts) == [THING]
    program = Program("x")
    space.compile_map(program, parts, HOLE, {THING.key: 77})
    assert names(program) == ["memfd_create", "ftruncate", "dup3", "close", "mmap"]
    assert program.branches[0][2].args[1] == 77 and program.branches[0][4].args[4] == 77
    program = Program("x")
    space.compile_finish(program, parts, numbers={THING.key: 77})
    assert names(program) == ["fcntl"] and program.branches[0][0].args == (77, 1033, 6)


def test_protections_of_neighbours_in_one_call() -> None:
    parts = [area(1, 2, 1, "ac me mr mw rd"), area(2, 3, 1, "ac dc me mr mw rd"), area(4, 5, 1, "ac me mr mw rd")]
    program = Program("x")
    space.compile_finish(program, parts)
    assert [op.args[:3] for op in program.branches[0]] == [(0x1000, 0x2000, 1), (0x4000, 0x1000, 1)]


def test_protection_keys() -> None:
    program = Program("x")
    space.compile_finish(program, [area(1, 2, pkey=3), area(2, 3, 4, "ex me mr mw", pkey=1)])
    assert names(program) == ["pkey_mprotect"]  # the second is execute-only, whose key is the kernel's
    assert program.branches[0][0].args == (0x1000, 0x1000, 3, 3)
    program = Program("x")
    mm = MM(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, b"", "/bin/x", pkeys=(2, 3))
    mm.restore_keys(program)
    freed = [op.args[0] for op in program.branches[0] if op.name == "pkey_free"]
    assert [op.expect for op in program.branches[0][:15]] == list(range(1, 16))
    assert freed == [1, *range(4, 16)]


def test_nothing_changed_is_nothing_to_do() -> None:
    parts = [area(1, 2), area(4, 8, backing=LIBRARY)]
    program = Program("x")
    assert space.compile_difference(program, parts, [replace(vma) for vma in parts], HOLE) == []
    assert len(program) == 0


@pytest.mark.parametrize(
    ("old", "new", "void"),
    [
        ([area(1, 4)], [area(1, 6)], [(4, 6)]),  # grown
        ([area(4, 8)], [area(2, 8)], [(2, 4)]),  # downwards
        ([area(1, 8)], [area(1, 3), area(3, 5, 1, "ac me mr mw rd"), area(5, 8)], []),  # split by protection
        ([area(1, 8)], [area(1, 3), area(5, 8)], []),  # a hole
        ([area(1, 4, backing=LIBRARY)], [area(1, 6, backing=LIBRARY)], []),  # mremap
        ([area(1, 4, backing=LIBRARY)], [area(1, 4)], [(1, 4)]),  # something else
        ([area(1, 4)], [area(1, 4, flags=RW + " dc")], [(1, 4)]),  # other rules
        ([area(1, 4, 0, "me mr mw")], [area(1, 4)], []),  # becomes fillable
        ([area(1, 4)], [area(1, 4, 0, "me mr mw")], [(1, 4)]),  # mapped anew, for it is not charged
    ],
)
def test_what_is_kept(old: list[VMA], new: list[VMA], void: list[tuple[int, int]]) -> None:
    found = space.compile_difference(Program("x"), old, new, HOLE)
    assert [(start >> 12, end >> 12) for start, end in found] == void


def test_too_many_mappings() -> None:
    parts = [area(2 * i, 2 * i + 1) for i in range(100)]
    assert space.problems(parts, "pid 7", 65530) == []
    (problem,) = space.problems(parts, "pid 7", 100)
    assert "100 mappings" in problem.what and "sysctl vm.max_map_count" in problem.advice


def test_bridges_keep_off_the_restorer() -> None:
    low = HOLE.start - (4 << 20) >> 12
    parts = [area(low, low + 1), area(park(HOLE)[1] + 4096 >> 12, (park(HOLE)[1] >> 12) + 2)]
    bridges = Bridges()
    bridges.plan([(vma, True) for vma in parts], set(), (HOLE.start, park(HOLE)[1]))
    assert bridges == Bridges()
    bridges.plan([(area(1, 2), True), (area(9, 10), True)], set(), (HOLE.start, park(HOLE)[1]))
    assert bridges.spans == {9 << 12: (2 << 12, 10 << 12)} and bridges.heads == {1 << 12}

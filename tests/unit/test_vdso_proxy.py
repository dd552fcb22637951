"""The proxy as bytes: jumps, stubs, mark; and where it goes."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cffi import FFI

from migrate.engine import vdso
from migrate.engine.program import Program
from migrate.engine.vdso import VDSO, Area, Mark, NoVDSO, StrangeMark, build, choose_base, decide, room_needed, stubs
from migrate.engine.vdso.mark import HEAD_SIZE, size_of
from migrate.engine.vdso.proxy import NoRoom
from tests.unit import vdsos

BASE = 0x7FFF_FFF0_0000
_ffi = FFI()


def _target(content: bytes, at: int) -> int:
    """Where the code at an address leads, when it is a jump."""
    if content[0] == 0xE9:
        return at + 5 + int(struct.unpack_from("<i", content, 1)[0])
    assert content[:6] == b"\xff\x25\0\0\0\0"
    return int(struct.unpack_from("<Q", content, 6)[0])


@pytest.mark.parametrize(
    ("at", "target", "room", "size"),
    [
        (0x1000, 0x2000, 5, 5),
        (0x7FFF_0000_0000, 0x7FFE_9000_0000, 5, 5),
        (0x1000, (1 << 31) + 0x1004, 5, 5),
        (0x1000, (1 << 31) + 0x1005, 14, 14),
        (0x7FFF_0000_0000, 0x1000, 60, 14),
    ],
)
def test_a_jump_leads_to_its_target(at: int, target: int, room: int, size: int) -> None:
    code = stubs.jump(at, target, room)
    assert len(code) == size and _target(code, at) == target


@pytest.mark.parametrize(("target", "room"), [(0x2000, 4), (1 << 40, 13)])
def test_a_jump_that_does_not_fit(target: int, room: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        stubs.jump(0x1000, target, room)


@pytest.mark.parametrize(("here", "there"), [*itertools.permutations(vdsos.KERNELS, 2), ("7.2", ""), ("5.10", "")])
@pytest.mark.parametrize("base", [BASE, 0x10_0000])
def test_every_entry_leads_where_it_should(here: str, there: str, base: int) -> None:
    """And nothing else of the image is another; ``there`` without a name is a kernel without a vDSO."""
    theirs = vdsos.vdso(there) if there else VDSO(())
    verdict = decide(vdsos.vdso(here), theirs, "pid 7")
    if base != BASE and any(entry.room < stubs.FAR for entry in verdict.entries):
        pytest.fail(f"{here} has functions that are too small for a long jump")
    made = build(verdict, base)
    task = made.task
    assert task.area is not None
    changed = set(range(len(task.image)))
    for entry in verdict.entries:
        at = task.area.start + entry.offset
        code = made.content[entry.offset :]
        target = _target(code, at)
        changed -= set(range(entry.offset, entry.offset + (5 if code[0] == 0xE9 else 14)))
        if entry.there is not None:
            rt = VDSO(made.rt).area
            assert rt is not None and target == rt.start + entry.there
        else:
            where = target - made.area.start
            assert made.own[where : where + len(entry.stub)] == entry.stub
    assert all(made.content[at] == task.image[at] for at in changed)
    # In one piece: the areas as the other kernel has them, then ours.
    assert VDSO(made.rt).shape == theirs.shape
    assert [area.start for area in (*made.rt, made.area)][0] == base
    assert made.area.end == base + room_needed(verdict) and len(made.own) <= made.area.size
    mark = Mark.decode(made.own)
    assert (mark.address, mark.size, mark.rt) == (made.area.start, made.area.size, made.rt)
    assert mark.task == task and mark.matches(made.content.ljust(task.area.size, b"\0"))
    assert not mark.matches(task.image)
    assert size_of(made.own[:HEAD_SIZE]) <= len(made.own)


def test_too_far_for_a_small_function() -> None:
    ours = vdsos.vdso("7.2")
    small = vdso.Function("__vdso_clock_getres2", 0x1080, 13, "LINUX_2.6")
    tight = VDSO(ours.areas, (*ours.functions, small), ours.image)
    theirs = VDSO(vdsos.areas("5.10"), (small,))
    verdict = decide(tight, theirs, "pid 7")
    assert build(verdict, BASE)
    with pytest.raises(NoRoom, match="__vdso_clock_getres2"):
        build(verdict, 0x100000)


@contextmanager
def _code(content: bytes, declaration: str) -> Iterator[Any]:
    """Call it."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(content)
    held = _ffi.from_buffer(page)
    try:
        yield _ffi.cast(declaration, int(_ffi.cast("uintptr_t", held)))
    finally:
        _ffi.release(held)
        page.close()


def _stub(name: str) -> bytes:
    code = stubs.stub(name)
    assert code is not None
    return code


def test_stubs_tell_the_time() -> None:
    two: Any = _ffi.new("long[2]")
    with _code(_stub("__vdso_clock_gettime"), "long (*)(long, long *)") as call:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        assert call(time.CLOCK_MONOTONIC, two) == 0
        assert before <= two[0] * 10**9 + two[1] <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        assert call(99, two) == -errno.EINVAL
    with _code(_stub("clock_getres"), "long (*)(long, long *)") as call:
        assert call(time.CLOCK_MONOTONIC, two) == 0 and (two[0], two[1]) == (0, 1)
    with _code(_stub("__vdso_gettimeofday"), "long (*)(long *, void *)") as call:
        assert call(two, _ffi.NULL) == 0 and abs(two[0] - time.time()) < 5
    with _code(_stub("time"), "long (*)(long *)") as call:
        assert abs(call(two) - time.time()) < 5 and two[0] == call(_ffi.NULL) or two[0] + 1 == call(_ffi.NULL)


def test_stub_of_getcpu() -> None:
    cpu, node = _ffi.new("unsigned *", 77), _ffi.new("unsigned *", 77)
    with _code(_stub("__vdso_getcpu"), "long (*)(unsigned *, unsigned *, void *)") as call:
        assert call(cpu, node, _ffi.NULL) == 0 and cpu[0] in os.sched_getaffinity(0) and node[0] < 77


def test_stub_of_getrandom() -> None:
    """Real bytes with any state, and no answer about the size of states, so that whoever asks does without."""
    room: Any = _ffi.new("unsigned char[256]")
    with _code(_stub("__vdso_getrandom"), "long (*)(void *, long, unsigned, void *, long)") as call:
        drawn = set()
        for opaque_size in (144, 0, -1):
            state: Any = _ffi.new("unsigned char[144]")
            assert call(room, 64, 0, state, opaque_size) == 64
            drawn.add(bytes(_ffi.buffer(room, 64)))
            assert not any(state)  # no copy of a state can ever say the same
        assert len(drawn) == 3 and not any(room[64:256])
        assert call(_ffi.NULL, 0, 0, room, -1) == -errno.ENOSYS
        assert call(_ffi.NULL, 0, 1, room, -1) == 0 and call(_ffi.NULL, 0, 0, room, 144) == 0
        assert call(room, 1, 1 << 20, room, 144) == -errno.EINVAL


@pytest.mark.parametrize(("bits", "pointer"), [(64, "unsigned long"), (32, "unsigned")])
def test_stub_of_a_robust_unlock(bits: int, pointer: str) -> None:
    lock, pending = _ffi.new("unsigned *", 4711), _ffi.new(f"{pointer} *", 5)
    declaration = f"unsigned (*)(unsigned *, unsigned, {pointer} *)"
    with _code(_stub(f"__vdso_futex_robust_list{bits}_try_unlock"), declaration) as call:
        assert call(lock, 1, pending) == 4711 and (lock[0], pending[0]) == (4711, 5)
        assert call(lock, 4711, pending) == 4711 and (lock[0], pending[0]) == (0, 0)


def test_stub_of_sgx_and_of_the_unknown() -> None:
    with _code(_stub("__vdso_sgx_enter_enclave"), "long (*)(void)") as call:
        assert call() == -errno.ENOSYS
    assert stubs.stub("__vdso_teleport") is None


NEAR = Area("[vdso]", 0x7FFF_F000_0000, 0x7FFF_F000_2000)


def test_beyond_the_stack_if_there_is_room() -> None:
    used = [(0x5555_0000_0000, 0x5555_0010_0000), (0x7FFF_E000_0000, 0x7FFF_E010_0000), (NEAR.start, NEAR.end)]
    assert choose_base(used, [], NEAR, 0x10000) == NEAR.end + 4096


def test_between_libraries_and_stack_otherwise() -> None:
    libraries = (0x7FFF_E000_0000, 0x7FFF_F000_2000)
    stack = (0x7FFF_FFFD_E000, 0x7FFF_FFFF_F000)
    base = choose_base([libraries, stack], [(stack[0] - (128 << 20), stack[0])], NEAR, 0x10000)
    assert base == libraries[1] + 4096
    # Not in what the stack may come to need.
    base = choose_base([libraries, stack], [(libraries[1], stack[0])], NEAR, 0x10000)
    assert base < libraries[0] and NEAR.end - base < 1 << 31


def test_far_away_if_it_must_be_and_nowhere_at_last() -> None:
    near = [(NEAR.end - (1 << 31), 1 << 47)]
    assert choose_base(near, [], NEAR, 0x10000) < near[0][0]
    with pytest.raises(NoRoom):
        choose_base([(0, 1 << 47)], [], NEAR, 0x10000)


def test_marks_that_make_no_sense() -> None:
    verdict = decide(vdsos.vdso("6.1"), vdsos.vdso("5.10"), "pid 7")
    good = build(verdict, BASE).own
    assert Mark.decode(good).address
    for at in range(0, 200, 7):
        with pytest.raises((StrangeMark, NoVDSO)):
            Mark.decode(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
    with pytest.raises(StrangeMark, match="written over"):
        Mark.decode(good[:3000])
    with pytest.raises(StrangeMark, match="version 2"):
        Mark.decode(good[:16] + b"\2" + good[17:])
    assert size_of(b"x" * HEAD_SIZE) == 0


def test_ops_in_an_order_that_works() -> None:
    """What waits is moved before anything is mapped; what the proxy does not need is gone."""
    verdict = decide(vdsos.vdso("6.18"), vdsos.vdso("6.1"), "pid 7")
    made = build(verdict, BASE)
    program = Program("x")
    parked = (Area("[vvar]", 0x1000, 0x5000), Area("[vvar_vclock]", 0x5000, 0x7000), Area("[vdso]", 0x7000, 0x9000))
    vdso.proxy_ops(program, parked, made)
    ops = [(op.name or op.kind.name, op.args[0]) for op in program.branches[0]]
    assert ops[:4] == [("mremap", 0x1000), ("munmap", 0x5000), ("mremap", 0x7000), ("mmap", made.area.start)]
    assert ("mmap", vdsos.BASE) in ops and ("mmap", vdsos.BASE + 0x4000) not in ops  # the two of vvar in one piece
    assert ops[-1][0] == "prctl"

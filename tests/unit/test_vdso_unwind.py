"""Where functions of the vDSO return to, and signal frames on stacks: over memory of our own making."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from migrate.engine.tracee.sigframe import Frame, Mappings, frames, search
from migrate.engine.vdso import Unwinder
from tests.unit import vdsos

TOP = 0x7FFF_0000_8000
HOME = 0x5555_0000_1234


class Memory:
    """Words, by address."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def word(self, address: int) -> int:
        return self.words[address]

    def read(self, address: int, size: int) -> bytes:
        return b"".join(struct.pack("<Q", self.words.get(at, 0)) for at in range(address, address + size, 8))[:size]


def _inside(base: int) -> Callable[[int], bool]:
    return lambda address: base <= address < base + 0x2000


@pytest.mark.parametrize("kernel", vdsos.KERNELS)
def test_at_the_entry_and_behind_the_prologue(kernel: str) -> None:
    """`push %rbp` is one byte, or follows an endbr64 or a five-byte nop; `mov %rsp,%rbp` comes soon after."""
    vdso, base = vdsos.vdso(kernel), 0x7FFF_F000_0000
    unwinder = Unwinder(vdso)
    offset = next(f.offset for f in vdso.functions if f.name == "__vdso_clock_gettime")
    memory = Memory()
    memory.words = {TOP: HOME, TOP - 8: 0x1111}

    def slot(rip: int, rsp: int, rbp: int) -> int | None:
        return unwinder.slot(base, rip, rsp, rbp, _inside(base), memory.word)

    assert slot(base + offset, TOP, 0x1111) == TOP
    push = vdso.image.index(b"\x55", offset)
    assert push - offset < 8 and slot(base + push, TOP, 0x1111) == TOP
    assert slot(base + push + 1, TOP - 8, 0x1111) == TOP
    moved = vdso.image.index(b"\x48\x89\xe5", push) + 3
    assert moved - push < 24
    assert slot(base + moved, TOP - 0x40, TOP - 8) == TOP
    # A frame pointer that makes no sense: nothing is guessed.
    assert slot(base + moved, TOP - 0x40, 0x33) is None
    # Behind the image there is nothing of its own: neither to be in, nor to return to.
    assert slot(base + len(vdso.image), TOP, 0x1111) is None
    memory.words[TOP] = base + len(vdso.image) + 64
    assert slot(base + offset, TOP, 0x1111) is None


def test_a_call_inside_is_followed_out() -> None:
    """The assembly of getrandom pushes nothing and has no frame information; its caller has."""
    vdso, base = vdsos.vdso("6.18"), 0x7FFF_F000_0000
    unwinder = Unwinder(vdso)
    offset = next(f.offset for f in vdso.functions if f.name == "__vdso_getrandom")
    call = vdso.image.index(b"\xe8", offset + 0x40)
    target = call + 5 + struct.unpack_from("<i", vdso.image, call + 1)[0]
    assert 0x780 < target < 0x1600
    memory = Memory()
    memory.words = {TOP - 0x80: base + call + 5, TOP: HOME}
    found = unwinder.slot(base, base + target + 7, TOP - 0x80, TOP - 8, _inside(base), memory.word)
    assert found == TOP


def _frame(memory: Memory, address: int, rip: int, rsp: int, mask: int, rbp: int = 5) -> None:
    """As the kernel writes it."""
    state = (address + 0x1B8 + 63) & -64
    memory.words |= {
        **{address + at: 0 for at in range(0, state + 0x240 - address, 8)},
        address + 0x80: rbp,
        address + 0xA8: rsp,
        address + 0xB0: rip,
        address + 0xB8: 0x246,
        address + 0xC0: 0x2B_0000_0000_0033,
        address + 0xE8: state,
        address + 0x130: mask,
        state + 464: 0x46505853,
    }


def test_frames_on_one_stack_and_on_another() -> None:
    memory, alternate = Memory(), 0x6000_0000
    _frame(memory, alternate + 0x1008, rip=0x111, rsp=TOP - 0x2000, mask=0)
    _frame(memory, TOP - 0x1C08 + 0x10, rip=0x222, rsp=TOP - 0x100, mask=1)
    mappings = [(alternate, alternate + 0x4000), (TOP - 0x4000, TOP)]
    found = list(frames(alternate + 0x1000, Mappings(mappings), memory.read))
    assert [(frame.rip, frame.mask) for frame in found] == [(0x111, 0), (0x222, 1)]
    assert found[0] == Frame(alternate + 0x1008, 0x111, TOP - 0x2000, 5, 0)
    # From a handler that has just begun, or is about to return.
    for pointer in (alternate + 0x1008, alternate + 0x1010):
        assert [frame.rip for frame in search(pointer, alternate + 0x4000, memory.read)] == [0x111]
    assert not search(alternate + 0x1018, alternate + 0x4000, memory.read)


def test_what_is_left_of_a_frame_is_none() -> None:
    memory, at = Memory(), TOP - 0x2008
    _frame(memory, at, rip=0x111, rsp=TOP - 0x100, mask=0)
    for broken in ({at + 0xC0: 0x33}, {at + 0xE8: at}, {at + 0xE8: 0}, {((at + 0x1B8 + 63) & -64) + 464: 0}):
        whole = dict(memory.words)
        memory.words |= broken
        assert not search(TOP - 0x3000, TOP, memory.read)
        memory.words = whole
    assert search(TOP - 0x3000, TOP, memory.read)

    def unreadable(address: int, size: int) -> bytes:
        raise OSError(14, "Bad address")

    assert not search(TOP - 0x3000, TOP, unreadable)
    assert not list(frames(0x1000, Mappings([(TOP - 0x4000, TOP)]), memory.read))


@pytest.mark.parametrize(
    ("saved", "blocked", "nodefer", "alive"),
    [
        (0, 1, False, True),
        (0, 0, False, False),  # its signal is not blocked any more: it has returned
        (2, 1, False, False),  # what it will block again is not blocked before it
        (0, 0, True, True),
        (2, 3, False, True),
    ],
)
def test_alive(saved: int, blocked: int, nodefer: bool, alive: bool) -> None:
    assert Frame(0, 0, 0, 0, saved).alive(blocked, nodefer) is alive

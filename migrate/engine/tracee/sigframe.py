"""Signal frames on a stack: where a thread will go on when its handlers return.

The kernel writes struct rt_sigframe (arch/x86/include/asm/sigframe.h): a return address, struct ucontext, siginfo_t.
Nothing points to it, so stacks are searched: eight bytes of it are the segment selectors that all 64-bit code has, and
behind it follows the XSAVE area with a magic number. What is found may also be what a handler has left that returned
long ago, under a stack that has grown again. So a frame
counts as alive only if more is blocked now than it says will be blocked after: the kernel adds the signal itself for
the time of its handler, unless SA_NODEFER tells it not to (sigaction(2)). A handler that unblocks its own signal by
itself goes unnoticed. (The number of the signal is in the frame only with SA_SIGINFO.)
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

DEPTH = 8 << 20  # bytes of one stack that are searched: the usual RLIMIT_STACK
_SELECTORS = struct.pack("<HHHH", 0x33, 0, 0, 0x2B)  # cs, gs, fs, ss (setup_sigcontext(), UC_SIGCONTEXT_SS)

# Offsets in struct rt_sigframe, of the registers by their names
R10, RBP, RAX, RIP = 0x40, 0x80, 0x98, 0xB0
_RSP, _SEGMENTS, _FPSTATE, _MASK, _SIZE = 0xA8, 0xC0, 0xE8, 0x130, 0x1B8
_APART = 128  # bytes at most between the end of the frame and the XSAVE area, which is aligned
_MAGIC_AT, _MAGIC = 464, struct.pack("<I", 0x46505853)  # FP_XSTATE_MAGIC1 in struct _fpx_sw_bytes (asm/sigcontext.h)
# struct sigcontext_32: bp, sp, ip, cs, sp_at_signal, ss, oldmask (the first 32 signals)
_CONTEXT_32 = struct.Struct("<24xII24xII4xII4xI4x")
_CS_AT_32, _CS_32, _SS = 60, struct.pack("<I", 0x23), 0x2B
_WORD = struct.Struct("<Q")
_WORDS = struct.Struct("<QQ")  # rsp, rip


@dataclass(frozen=True)
class Frame:
    """``address``: of the frame; ``rip``, ``rsp``, ``rbp``, ``mask`` (blocked signals): what its handler returns to."""

    address: int
    rip: int
    rsp: int
    rbp: int
    mask: int
    known: int = (1 << 64) - 1  # bits of the mask

    def alive(self, blocked: int, nodefer: bool) -> bool:
        """Whether its handler can still be running. ``blocked``: what the thread blocks now; ``nodefer``: some handlers
        have SA_NODEFER."""
        blocked &= self.known
        return not self.mask & ~blocked and (self.mask != blocked or nodefer)


def may_be_in_a_handler(blocked: int, nodefer: bool) -> bool:
    """Whether any frame on the stacks of a thread can be alive (see `Frame.alive`)."""
    return bool(blocked) or nodefer


class Mappings:
    """Where something is mapped."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """``ranges``: lowest first."""
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]

    def end(self, address: int) -> int:
        """Of the mapping that an address is in; 0: it is in none."""
        at = bisect.bisect_right(self._starts, address) - 1
        return self._ends[at] if at >= 0 and address < self._ends[at] else 0


Read = Callable[[int, int], bytes]  # address, size; OSError where nothing is mapped


def frames(rsp: int, mappings: Mappings, read: Read, compat: bool = False) -> Iterator[Frame]:
    """All that look like frames from a stack pointer upwards; then on the stacks that they return to, where those are
    others (sigaltstack(2)). ``compat``: of 32 bits."""
    seen = {0}  # ends of the mappings that were searched
    waiting = [rsp]
    while waiting:
        pointer = waiting.pop()
        end = mappings.end(pointer)
        if end in seen:
            continue
        seen.add(end)
        for frame in search_ia32(pointer, end, read) if compat else search(pointer, end, read):
            waiting.append(frame.rsp)
            yield frame


def extent(pointer: int, end: int) -> tuple[int, int]:
    """Where on a stack frames are looked for: address and bytes. ``end``: that of its mapping."""
    start = pointer & -8
    return start, min(end - start, DEPTH)


def may_have_frames(content: bytes) -> bool:
    """Whether it is worth a closer look. (The magic number is found much faster than the selectors among the zeros that
    stacks are full of.)"""
    return _MAGIC in content


def search(pointer: int, end: int, read: Read) -> list[Frame]:
    """Of one stack. ``end``: that of its mapping."""
    start, size = extent(pointer, end)
    try:
        content = read(start, size)
    except OSError:
        return []  # no memory that can be read; so nothing of a handler is there
    found, at = [], content.find(_SELECTORS)
    while at >= 0:
        base = at - _SEGMENTS
        # In its rt_sigreturn(2) the return address is popped already.
        if at % 8 == 0 and base >= -8 and base + _SIZE <= len(content) and _has_state(content, base, start):
            rsp, rip = _WORDS.unpack_from(content, base + _RSP)
            (rbp,), (mask,) = (_WORD.unpack_from(content, base + place) for place in (RBP, _MASK))
            found.append(Frame(start + base, rip, rsp, rbp, mask))
        at = content.find(_SELECTORS, at + 1)
    return found


def search_ia32(pointer: int, end: int, read: Read) -> list[Frame]:
    """`search` for those of 32 bits, struct sigframe_ia32 and rt_sigframe_ia32: for the struct sigcontext_32 that is in
    both (asm/sigcontext.h), by its selectors of code and stack and the stack pointer that is in it twice."""
    start, size = extent(pointer, end)
    try:
        content = read(start, size)
    except OSError:
        return []
    found, at = [], content.find(_CS_32)
    while at >= 0:
        base = at - _CS_AT_32
        if base >= 0 and base + _CONTEXT_32.size <= len(content):
            rbp, rsp, rip, _, again, ss, mask = _CONTEXT_32.unpack_from(content, base)
            if rsp == again and ss == _SS:
                found.append(Frame(start + base, rip, rsp, rbp, mask, 0xFFFF_FFFF))
        at = content.find(_CS_32, at + 1)
    return found


def _has_state(content: bytes, base: int, start: int) -> bool:
    """Whether it points to an XSAVE area behind itself: one that was written over in part does not any more."""
    (pointer,) = _WORD.unpack_from(content, base + _FPSTATE)
    at = pointer - start + _MAGIC_AT
    return 0 <= pointer - start - base - _SIZE <= _APART and content[at : at + 4] == _MAGIC

"""What is otherwise with threads of 32 bits: segments for their own memory, handlers that return by way of the vDSO,
and how they are got out of that.

Where a function of such a vDSO will return to nothing tells (its image has no call frame information of C functions).
So a thread that is in one is let run, alone, for a moment and some single steps, again and again until it is outside.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from signal import SIGTRAP

from migrate.engine.tracee import ptrace
from migrate.engine.tracee.detour import ProcessEnded
from migrate.engine.tracee.detour import look as look_at
from migrate.engine.tracee.leaving import Code, Stacks
from migrate.engine.tracee.memory import RemoteAddress
from migrate.engine.tracee.sigframe import extent, frames, may_be_in_a_handler
from migrate.engine.tracee.together import Seen
from migrate.engine.tracee.tree import Tracee
from migrate.engine.tracee.waiting import attentive, wait_until
from migrate.errors import Problem

_FIRST, _COUNT = 12, 3  # entries of the descriptor table (GDT_ENTRY_TLS_MIN, asm/segment.h)
_WORD = struct.Struct("<I")
_PATIENCE = 2.0  # seconds that a thread gets to stop
_MOMENT = 50e-6  # seconds; one that is interrupted at once has run no instruction
_STEPS = 60  # to read the time at that pace takes so long that it is another one meanwhile, and is read again
_SPINS = 50


def thread_areas(tid: int) -> tuple[bytes, ...]:
    """struct user_desc of each entry that the thread has set (set_thread_area(2))."""
    found = (ptrace.get_thread_area(tid, entry) for entry in range(_FIRST, _FIRST + _COUNT))
    return tuple(each for each in found if not _is_empty(each))


def _is_empty(description: bytes) -> bool:
    """As the kernel shows an entry that was never set: base and limit 0, not present (LDT_empty(), asm/desc.h)."""
    _, base, limit, flags = struct.unpack("<4I", description)
    return not base and not limit and bool(flags >> 5 & 1)  # seg_not_present


def leave(
    tracee: Tracee, seen: list[Seen], code: Code, stacks: Stacks, look: Callable[[], Stacks], seconds: float
) -> tuple[list[Problem], list[Seen]]:
    """As `migrate.engine.tracee.leaving.leave`."""
    deadline = time.monotonic() + seconds
    try:
        while inside := [each for each in seen if _is_inside(tracee, each, code, stacks)]:
            if time.monotonic() > deadline:
                what = "it is in a function of its vDSO, or in a signal handler that has interrupted one"
                return [Problem(f"thread {each.tid} of process {tracee.pid}", what) for each in inside], seen
            with attentive():
                for each in inside:
                    _run_out(tracee, each.tid, code, stacks, deadline)
            tracee.stop()  # what ran may have made threads, or ended
            seen, stacks = tracee.look(), look()
        return [], seen
    except ProcessLookupError as error:
        raise ProcessEnded(f"process {tracee.pid} was killed while it was being looked at") from error


def _is_inside(tracee: Tracee, thread: Seen, code: Code, stacks: Stacks) -> bool:
    """Whether it is in the code, or a handler is going to return there."""
    return thread.registers.rip in code or bool(_frame(tracee, thread, code, stacks))


def _frame(tracee: Tracee, thread: Seen, code: Code, stacks: Stacks) -> int:
    """The highest on a stack that leads back into the code, or 0."""
    blocked, nodefer = thread.signal_mask, stacks.nodefer
    if not may_be_in_a_handler(blocked, nodefer):
        return 0

    def read(address: int, size: int) -> bytes:
        return tracee.memory.read(RemoteAddress(address), size)

    found = frames(thread.registers.rsp, stacks.mappings, read, compat=True)
    return max((each.address for each in found if each.rip in code and each.alive(blocked, nodefer)), default=0)


def _run_out(tracee: Tracee, tid: int, code: Code, stacks: Stacks, deadline: float) -> None:
    """Let it run until it is outside, or has ended, or time is up; it is in a stop as an interrupt brings it then."""
    frame = 0
    while time.monotonic() < deadline:
        # To search a stack takes longer than most handlers.
        if not _run_a_moment(tracee, tid) or not frame and not _step_out(tracee, tid, code):
            return
        registers = tracee.registers(tid)
        if registers.rip in code or registers.rsp < frame <= stacks.mappings.end(registers.rsp):
            continue
        (thread,) = look_at([tid], tracee.registrations)
        frame = _frame(tracee, thread, code, stacks)
        if not frame:
            return


def _step_out(tracee: Tracee, tid: int, code: Code) -> bool:
    """One instruction after the other, until it is outside or a signal comes, which it gets. Whether it lives."""
    number = 0
    for _ in range(_STEPS):
        if tracee.registers(tid).rip not in code:
            break
        ptrace.step(tid)
        stop = _next(tid)
        if not stop.stopped:
            return False
        if stop.event:
            tracee.note_stop(stop)
        elif stop.signal != SIGTRAP:
            number = stop.signal
            break
    ptrace.interrupt(tid)
    ptrace.cont(tid, number)
    return _stopped(tracee, tid)


def _run_a_moment(tracee: Tracee, tid: int) -> bool:
    """Whether it lives."""
    ptrace.cont(tid)
    time.sleep(_MOMENT)
    ptrace.interrupt(tid)
    return _stopped(tracee, tid)


def _stopped(tracee: Tracee, tid: int) -> bool:
    """When the interrupt has come, for which signals do not wait. Whether it lives."""
    while True:
        stop = _next(tid)
        if not stop.stopped:
            return False
        if stop.event:
            tracee.note_stop(stop)
            return True
        ptrace.interrupt(tid)  # any other stop makes the kernel forget the one before (ptrace_stop())
        ptrace.cont(tid, stop.signal)


def _next(tid: int) -> ptrace.Stop:
    for _ in range(_SPINS):  # it runs on another CPU, for no longer than it takes to go to sleep
        stop = ptrace.wait(tid)
        if stop is not None:
            return stop
    stop = wait_until(tid, time.monotonic() + _PATIENCE)
    if stop is None:
        raise ProcessEnded(f"thread {tid} does not stop any more")
    return stop


def point_home(tracee: Tracee, seen: Sequence[Seen], stacks: Stacks, words: Mapping[int, int]) -> None:
    """On the stacks of threads that may be in handlers: other words for these. ``words``: addresses that nothing but a
    frame would have there."""
    for each in seen if words else ():
        rsp = each.registers.rsp
        end = stacks.mappings.end(rsp)
        if not end or not may_be_in_a_handler(each.signal_mask, stacks.nodefer):
            continue
        start, size = extent(rsp, end)
        content = tracee.memory.read(RemoteAddress(start), size)
        for word, other in words.items():
            old, at = _WORD.pack(word), 0
            while (at := content.find(old, at)) >= 0:
                if at % _WORD.size == 0:
                    tracee.memory.write(RemoteAddress(start + at), _WORD.pack(other))
                at += 1

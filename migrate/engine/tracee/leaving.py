"""Getting threads out of code that will not be there when they go on: out of a vDSO.

A thread may be in the middle of a function of it, or in a signal handler that has interrupted one, or both, several
times over. Each such call is going to return somewhere outside. That return address is on the stack; it is exchanged
for that of a stub, the thread is let go on, and stopped when it comes to the stub: there it is as if it had returned.
The others stand still meanwhile. One step after the other (PTRACE_SINGLESTEP) would do without the stub, but two
switches for each instruction take so long on a busy machine that timers go off in between, and their handlers are
interrupted by timers.

Nothing is lost when we are killed: the stub raises a signal that is ignored, and goes on where the function would have
returned to. All other signals are delivered as ever.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.detour import ProcessEnded
from migrate.engine.tracee.memory import RemoteAddress
from migrate.engine.tracee.registers import NO_SYSCALL, Registers
from migrate.engine.tracee.sigframe import (
    R10,
    RAX,
    RIP,
    Frame,
    Mappings,
    extent,
    frames,
    may_be_in_a_handler,
    may_have_frames,
)
from migrate.engine.tracee.together import Seen, settle, stops
from migrate.engine.tracee.together import registers as all_registers
from migrate.engine.tracee.tree import Tracee
from migrate.engine.tracee.waiting import attentive, wait_until
from migrate.errors import Problem

_WORD = struct.Struct("<Q")
_SYSCALL_STOP = 5 | ptrace.SYSCALL_STOP  # SIGTRAP
_RECALL = 2.0  # seconds that a thread gets to stop when its time is up
_NEAR = 512  # bytes of a stack that are read ahead: more than a function of a vDSO has on it
_LOWEST, _HIGHEST = 1 << 12, 1 << 47  # addresses of code


def _call(name: str) -> bytes:
    return b"\xb8" + struct.pack("<I", NUMBERS[name]) + b"\x0f\x05"  # mov $number,%eax; syscall


# A function may change rcx, rdx, rsi, rdi and r8 to r11 (System V ABI): the stub changes no others but rax, and that
# it puts back.
_RAISE = (
    b"\x49\x89\xc2" + _call("getpid") + b"\x89\xc7" + _call("gettid") + b"\x89\xc6"  # mov %rax,%r10; %edi, %esi
    b"\xba%b" + _call("tgkill")  # mov $signal,%edx
)
_GO_HOME = b"\x4c\x89\xd0\xff\x25\0\0\0\0"  # mov %r10,%rax; jmp *0(%rip), with the address behind it
_MARKED = len(_RAISE) + 2  # offset of the instruction behind the last system call
STUB_SIZE = 64

# rip, rsp, rbp, what reads a word of the stack -> the address of the return address that leads out, or None
Slot = Callable[[int, int, int, Callable[[int], int]], int | None]


@dataclass(frozen=True)
class Code:
    """``ranges``: addresses that no thread may be at, but for the very first instruction of a function: ``entries``.
    ``slot``: where the return address is (see `Slot`). ``tails``: those of them that only tracers use, for a while."""

    ranges: tuple[tuple[int, int], ...]
    entries: frozenset[int]
    slot: Slot
    tails: tuple[tuple[int, int], ...] = ()

    def __contains__(self, rip: int) -> bool:
        return any(start <= rip < end for start, end in self.ranges) and rip not in self.entries


@dataclass(frozen=True)
class Stacks:
    """``mappings``: of the process; ``nodefer``: it has handlers with SA_NODEFER."""

    mappings: Mappings
    nodefer: bool


@dataclass(frozen=True)
class _Call:
    """A call of the code that has not returned yet. ``slot``: where its return address is; ``home``: that address;
    ``stub``: what stands there meanwhile; ``marker``: the signal that this raises."""

    slot: int
    home: int
    stub: RemoteAddress
    marker: int

    @property
    def code(self) -> bytes:
        """The stub."""
        code = _RAISE % struct.pack("<I", self.marker) + _GO_HOME + _WORD.pack(self.home)
        return code.ljust(STUB_SIZE, b"\xcc")


def leave(
    tracee: Tracee, seen: list[Seen], code: Code, stacks: Stacks, look: Callable[[], Stacks], seconds: float
) -> tuple[list[Problem], list[Seen]]:
    """Have every thread of the stopped process out of the code, and none about to return to it. ``seen``: all threads,
    as they are now; ``look``: at the stacks once more, when a thread has run.

    Which threads do not come out in ``seconds``, in words; and all threads as they are then: ``seen`` itself when none
    has run. All are stopped again in any case. Raises ProcessEnded, and Refused when there is no room for stubs.
    """
    deadline = time.monotonic() + seconds
    try:
        while True:
            suspects = _suspects(tracee, seen, code, stacks)
            near = _surroundings(tracee, suspects)
            found = {}
            for each in suspects:
                calls = _Reader(tracee, each, code, stacks, near.get(each.tid, b"")).calls()
                if calls is None:
                    what = "it is in its vDSO, and nobody can tell where that returns to"
                    return [_problem(tracee, each.tid, what)], seen
                if calls:
                    found[each.tid] = calls
            _tidy(tracee, code)
            if not found:
                return [], seen
            if time.monotonic() > deadline:
                why = "it is in a function of its vDSO, or in a signal handler that has interrupted one"
                return [_problem(tracee, tid, why) for tid in found], seen
            out = [each for each in suspects if each.tid in found]
            if _Outing(tracee, code, stacks, out, found).run(deadline):
                return [], tracee.look()
            tracee.stop()  # what ran may have made threads, or ended
            seen, stacks = tracee.look(), look()
    except ProcessLookupError as error:
        raise ProcessEnded(f"process {tracee.pid} was killed while it was being looked at") from error


def _suspects(tracee: Tracee, seen: Sequence[Seen], code: Code, stacks: Stacks) -> list[Seen]:
    """The threads that may be concerned; mostly none. All stacks are read at once."""
    found, others, runs = [], [], []
    for each in seen:
        rsp = each.registers.rsp
        end = stacks.mappings.end(rsp)
        if each.registers.rip in code:
            found.append(each)
        elif end and may_be_in_a_handler(each.signal_mask, stacks.nodefer):
            start, size = extent(rsp, end)
            others.append(each)
            runs.append((RemoteAddress(start), size))
    try:
        contents = tracee.memory.read_many(runs)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise
        return found + others  # one of them cannot be read: each by itself
    return found + [other for other, content in zip(others, contents, strict=True) if may_have_frames(content)]


def _surroundings(tracee: Tracee, threads: Sequence[Seen]) -> dict[int, bytes]:
    """What is at the stack pointer of each, read at once: mostly all that is asked for. Nothing where that cannot be
    done."""
    try:
        contents = tracee.memory.read_many([(RemoteAddress(each.registers.rsp), _NEAR) for each in threads])
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise
        return {}
    return {each.tid: content for each, content in zip(threads, contents, strict=True)}


def _tidy(tracee: Tracee, code: Code) -> None:
    """Take out what tracers that were killed have left in the tails. All calls are known, and none of them leads there;
    so nobody is there, nor will come there."""
    for start, end in code.tails:
        if tracee.memory.read(RemoteAddress(start), end - start).strip(b"\0"):
            tracee.memory.force_write(RemoteAddress(start), bytes(end - start))


def _problem(tracee: Tracee, tid: int, what: str) -> Problem:
    return Problem(f"thread {tid} of process {tracee.pid}", what)


@dataclass(frozen=True)
class _Reader:
    """What is on the stacks of one thread. ``near``: what is at its stack pointer, as far as that was read."""

    tracee: Tracee
    thread: Seen
    code: Code
    stacks: Stacks
    near: bytes

    def calls(self) -> list[tuple[int, int]] | None:
        """Slot and content of each call that has not returned. None: of one it cannot be told."""
        registers = self.thread.registers
        places = [(registers.rip, registers.rsp, registers.rbp)] if registers.rip in self.code else []
        places += [(frame.rip, frame.rsp, frame.rbp) for frame in self._returns(registers.rsp)]
        found = []
        try:
            for rip, rsp, rbp in places:
                slot = self.code.slot(rip, rsp, rbp, self._word)
                home = 0 if slot is None else self._word(slot)
                if slot is None or not _LOWEST <= home < _HIGHEST or not _is_call(self._read(home - 7, 7)):
                    return None
                found.append((slot, home))
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise
            return None  # not mapped: then it is no stack
        return found

    def _returns(self, rsp: int) -> list[Frame]:
        """The frames that lead back into the code."""
        blocked, nodefer = self.thread.signal_mask, self.stacks.nodefer
        if not may_be_in_a_handler(blocked, nodefer):
            return []
        found = frames(rsp, self.stacks.mappings, self._read)
        return [frame for frame in found if frame.rip in self.code and frame.alive(blocked, nodefer)]

    def _word(self, address: int) -> int:
        return int(_WORD.unpack(self._read(address, 8))[0])

    def _read(self, address: int, size: int) -> bytes:
        at = address - self.thread.registers.rsp
        if 0 <= at <= len(self.near) - size:
            return self.near[at : at + size]
        return self.tracee.memory.read(RemoteAddress(address), size)


def _is_call(before: bytes) -> bool:
    """Whether the bytes ahead of a return address can be a call: with a distance, or through a register or memory."""
    return before[-5] == 0xE8 or any(before[-n] == 0xFF and before[1 - n] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))


def _at_home(registers: Registers, call: _Call) -> Registers:
    """From the end of a stub to where the function would have returned to."""
    return registers.replace(rip=call.home, rax=registers.r10, orig_rax=NO_SYSCALL)


class _Outing:
    """Some of the threads on their way out: as many as there are stubs for."""

    def __init__(
        self, tracee: Tracee, code: Code, stacks: Stacks, seen: Sequence[Seen],
        found: Mapping[int, list[tuple[int, int]]],
    ) -> None:
        self._tracee, self._stacks = tracee, stacks
        self._place, self._room = tracee.pad.take()
        free = iter(range(self._place, self._place + self._room - STUB_SIZE + 1, STUB_SIZE))
        self._away: dict[int, list[_Call]] = {}
        self._markers: dict[int, int] = {}  # where none is possible, 0: system calls are watched instead
        self._left_out = False  # some of them, for want of room
        self._alone: list[int] = []  # that have nothing to do but return, and wait for nobody
        for each in seen:
            tid, calls = each.tid, found[each.tid]
            marker = tracee.dispositions.marker(each.signal_mask)
            pairs = zip(calls, free, strict=False)
            taken = [_Call(slot, home, RemoteAddress(stub), marker) for (slot, home), stub in pairs]
            if len(taken) < len(calls):
                self._left_out = True
                break
            self._away[tid], self._markers[tid] = taken, marker
            if marker and len(calls) == 1 and each.registers.rip in code:
                self._alone.append(tid)

    def run(self, deadline: float) -> bool:
        """Whoever is not out by then is stopped where it is, with its own return addresses. Whether all are out, and
        nothing was run of the process but what was left of those functions."""
        memory = self._tracee.memory
        calls = [call for each in self._away.values() for call in each]
        if not calls:
            return False  # more handlers on one stack than anybody has
        memory.force_write(self._place, b"".join(call.code for call in calls))
        memory.write_many([(RemoteAddress(call.slot), _WORD.pack(call.stub)) for call in calls])
        with attentive():
            try:
                for tid in self._away:
                    self._go_on(tid)
                done = self._come_together(deadline)
                for tid in list(self._away):
                    while tid in self._away and (stop := wait_until(tid, deadline)) is not None:
                        self._see(tid, stop)
            finally:
                left = list(self._away)
                for tid in left:
                    self._recall(tid)
                for tid in left:
                    self._put_back(tid)
        self._tracee.pad.give_back(self._place, self._room)
        return done

    def _come_together(self, deadline: float) -> bool:
        """What mostly happens: each of them comes to its stub, and all are seen to at once. Whether that was all."""
        alone = self._alone
        stopped: dict[int, ptrace.Stop] = {}
        try:
            # When the last one has come, mostly all have.
            for tid in reversed(alone):
                if tid not in stopped and (stop := wait_until(tid, deadline)) is not None:
                    stopped[tid] = stop
                    stopped |= stops([other for other in alone if other not in stopped])
        finally:
            marked = [
                tid for tid, stop in stopped.items()
                if stop.stopped and not stop.event and stop.signal == self._markers[tid]
            ]  # fmt: skip
            home = []
            for tid, registers in all_registers(marked).items():
                (call,) = self._away[tid]
                if registers.rip == call.stub + _MARKED:
                    home.append((tid, _at_home(registers, call).pack()))
                    del self._away[tid], stopped[tid]
            done = not stopped and not self._away and not self._left_out
            settle(home)
            with ExitStack() as each:  # a stop is reported once: all are seen to, whatever becomes of one
                for tid, stop in stopped.items():
                    each.callback(self._see, tid, stop)
                there = stops([tid for tid, _ in home])
                for tid, _ in home:
                    each.callback(self._await_stop, tid, there.get(tid))
        return done

    def _see(self, tid: int, stop: ptrace.Stop) -> None:
        if not stop.stopped:
            del self._away[tid]  # it has ended
            return
        number = 0 if stop.event or stop.signal == _SYSCALL_STOP else stop.signal
        if stop.event:
            self._tracee.note_stop(stop)
        elif number in (0, self._markers[tid]):
            registers = self._tracee.registers(tid)
            arrived = next((call for call in self._away[tid] if registers.rip == call.stub + _MARKED), None)
            if arrived is not None:
                number = 0
                home = _at_home(registers, arrived)
                self._away[tid].remove(arrived)
                if not self._away[tid]:
                    del self._away[tid]
                    settle([(tid, home.pack())])
                    self._await_stop(tid)
                    return
                self._tracee.set_registers(tid, home)
        self._go_on(tid, number)

    def _go_on(self, tid: int, number: int = 0) -> None:
        resume = ptrace.cont if self._markers[tid] else ptrace.cont_to_syscall
        resume(tid, number)

    def _recall(self, tid: int) -> None:
        ptrace.interrupt(tid)
        self._await_stop(tid)

    def _await_stop(self, tid: int, stop: ptrace.Stop | None = None) -> None:
        """One that `ptrace.interrupt` brings. ``stop``: what it has reported already."""
        deadline = time.monotonic() + _RECALL
        while True:
            stop = stop or wait_until(tid, deadline)
            if stop is None:
                raise ProcessEnded(f"thread {tid} does not stop any more")
            if not stop.stopped:
                self._away.pop(tid, None)
                return
            if stop.event:
                self._tracee.note_stop(stop)
                return
            ptrace.interrupt(tid)  # any other stop makes the kernel forget the one before (ptrace_stop())
            ptrace.cont(tid, 0 if stop.signal == _SYSCALL_STOP else stop.signal)
            stop = None

    def _put_back(self, tid: int) -> None:
        """No stub is where this thread will come to any more."""
        memory = self._tracee.memory
        for call in self._away.pop(tid, []):
            if memory.read(RemoteAddress(call.slot), 8) == _WORD.pack(call.stub):
                memory.write(RemoteAddress(call.slot), _WORD.pack(call.home))
            registers = self._tracee.registers(tid)
            if 0 <= registers.rip - call.stub < STUB_SIZE:
                rax = registers.rax if registers.rip == call.stub else registers.r10
                self._tracee.set_registers(tid, registers.replace(rip=call.home, rax=rax, orig_rax=NO_SYSCALL))
            self._put_back_frames(registers.rsp, call)

    def _put_back_frames(self, rsp: int, call: _Call) -> None:
        """A handler may have interrupted the stub."""
        memory = self._tracee.memory

        def read(address: int, size: int) -> bytes:
            return memory.read(RemoteAddress(address), size)

        for frame in frames(rsp, self._stacks.mappings, read):
            if 0 <= frame.rip - call.stub < STUB_SIZE:
                if frame.rip != call.stub:
                    memory.write(RemoteAddress(frame.address + RAX), read(frame.address + R10, 8))
                memory.write(RemoteAddress(frame.address + RIP), _WORD.pack(call.home))

"""ptrace requests to many threads of a stopped process, made in one go (`migrate.pie.calls`)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from migrate.engine.kernel.buffers import address_of
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.registers import Registers
from migrate.engine.tracee.rseq import Registrations
from migrate.pie.calls import Calls

_WORDS = struct.Struct("<Q")
_RSEQ = struct.Struct("<QIII")  # struct ptrace_rseq_configuration, but for its padding
_RSEQ_SIZE = 24
_IOVEC = struct.Struct("<QQ")
_PLACE = struct.Struct("<24xQ96xQ80x")  # r12 and rip of user_regs_struct
_STATUS = struct.Struct("<i")
_PEEK = struct.Struct("<QIi")  # struct ptrace_peeksiginfo_args: offset, flags, how many
_PEEKED = 8  # siginfo_t of a thread that are asked for at first

# Where the answers about a thread are, in the room for one
_AT_REGISTERS, _AT_MASK, _AT_RSEQ, _AT_IOVEC, _AT_XSTATE = 0, 216, 224, 248, 320


@dataclass  # not frozen: that takes three times as long to make, for each thread of a process that stands still
class Seen:
    """One stopped thread. ``xstate``: XSAVE area in the standard format, of the machine's full size; bytes 464 to 471
    are the components of this machine."""

    tid: int
    registers: Registers
    signal_mask: int
    rseq: ptrace.RseqConfiguration | None
    xstate: bytes


def seize(tids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Become the tracer of each, and make it stop soon (`ptrace.seize`, `ptrace.interrupt`): what the two requests
    returned, 0 or -errno."""
    calls = Calls()
    calls.add_table(
        len(tids),
        (ptrace.NUMBER, ptrace.SEIZE, tids, 0, ptrace.O_TRACESYSGOOD),
        (ptrace.NUMBER, ptrace.INTERRUPT, tids, 0, 0),
    )
    results = iter(calls.make())
    return dict(zip(tids, zip(results, results, strict=True), strict=True))


def survey(tids: Sequence[int], registrations: Registrations) -> list[Seen]:
    """Look at these threads. ``registrations`` tells of rseq(2) where ptrace(2) cannot. OSError: ESRCH when one was
    killed."""
    size = len(ptrace.get_xstate(tids[0])) if tids else 0  # that of the machine
    stride = -(-(_AT_XSTATE + size) // 64) * 64
    room = bytearray(stride * len(tids))
    base = address_of(room)
    for at in range(0, len(room), stride):
        _IOVEC.pack_into(room, at + _AT_IOVEC, base + at + _AT_XSTATE, size)

    def all_of(offset: int) -> range:
        return range(base + offset, base + offset + len(room), stride)

    calls = Calls()
    calls.add_table(
        len(tids),
        (ptrace.NUMBER, ptrace.GETREGS, tids, 0, all_of(_AT_REGISTERS)),
        (ptrace.NUMBER, ptrace.GETREGSET, tids, ptrace.NT_X86_XSTATE, all_of(_AT_IOVEC)),
        (ptrace.NUMBER, ptrace.GETSIGMASK, tids, 8, all_of(_AT_MASK)),
        (ptrace.NUMBER, ptrace.GET_RSEQ_CONFIGURATION, tids, _RSEQ_SIZE, all_of(_AT_RSEQ)),
    )
    results = _make(calls, tids, (0, 0, 0, errno.EIO))  # PTRACE_GET_RSEQ_CONFIGURATION came with Linux 5.13
    found = [_seen(tid, room, index * stride) for index, tid in enumerate(tids)]
    if results and results[3] == -errno.EIO:
        for each in found:
            each.rseq = registrations.find(each.registers.thread_pointer)
    return found


def _seen(tid: int, room: bytearray, at: int) -> Seen:
    (mask,) = _WORDS.unpack_from(room, at + _AT_MASK)
    rseq = _rseq(bytes(room[at + _AT_RSEQ : at + _AT_RSEQ + _RSEQ_SIZE]))
    registers = Registers.unpack(bytes(room[at : at + ptrace.REGS_SIZE]))
    (length,) = _WORDS.unpack_from(room, at + _AT_IOVEC + 8)
    xstate = bytes(room[at + _AT_XSTATE : at + _AT_XSTATE + length])
    return Seen(tid, registers, mask, rseq, xstate)


@lru_cache(maxsize=4096)
def _rseq(raw: bytes) -> ptrace.RseqConfiguration | None:
    configuration = ptrace.RseqConfiguration(*_RSEQ.unpack_from(raw))
    return configuration if configuration.address else None


def registers(tids: Sequence[int]) -> dict[int, Registers]:
    """The general registers of each. OSError as of `survey`."""
    room, calls = bytearray(ptrace.REGS_SIZE * len(tids)), Calls()
    calls.add_table(len(tids), (ptrace.NUMBER, ptrace.GETREGS, tids, 0, _each(room, ptrace.REGS_SIZE)))
    _make(calls, tids)
    ends = range(0, len(room), ptrace.REGS_SIZE)
    return {tid: Registers.unpack(bytes(room[at : at + ptrace.REGS_SIZE])) for tid, at in zip(tids, ends, strict=True)}


def pending_signals(tids: Sequence[int]) -> dict[int, list[bytes]]:
    """siginfo_t of the signals sent to each thread, in order. OSError as of `survey`."""
    stride = _PEEKED * ptrace.SIGINFO_SIZE
    room = bytearray(stride * len(tids))
    ask = bytearray(_PEEK.pack(0, 0, _PEEKED))
    calls = Calls()
    calls.add_table(len(tids), (ptrace.NUMBER, ptrace.PEEKSIGINFO, tids, address_of(ask), _each(room, stride)))
    counts = _make(calls, tids)
    found = {}
    for index, (tid, count) in enumerate(zip(tids, counts, strict=True)):
        if count < _PEEKED:
            start = index * stride
            ends = range(start, start + count * ptrace.SIGINFO_SIZE, ptrace.SIGINFO_SIZE)
            found[tid] = [bytes(room[at : at + ptrace.SIGINFO_SIZE]) for at in ends]
        else:
            found[tid] = ptrace.pending_signals(tid, shared=False)
    return found


def dress(threads: Sequence[tuple[int, bytes, int]], mask_first: bool, resume: Sequence[int] = ()) -> None:
    """Set registers (user_regs_struct) and signal mask of each thread, in that order or the other way round; and let it
    run on by the request at its place in ``resume``. OSError as of `survey`: none is left out for another's sake."""
    stride = ptrace.REGS_SIZE + 8
    room = bytearray(b"".join(registers + mask.to_bytes(8, "little") for _, registers, mask in threads))
    at, tids = _each(room, stride), [tid for tid, _, _ in threads]
    masks = range(at.start + ptrace.REGS_SIZE, at.stop + ptrace.REGS_SIZE, stride)
    steps: list[tuple[int | Sequence[int], ...]] = [
        (ptrace.NUMBER, ptrace.SETREGS, tids, 0, at),
        (ptrace.NUMBER, ptrace.SETSIGMASK, tids, 8, masks),
    ]
    if mask_first:
        steps.reverse()
    if resume:
        steps.append((ptrace.NUMBER, resume, tids, 0, 0))
    calls = Calls()
    calls.add_table(len(tids), *steps)
    _make(calls, tids, (0,) * len(steps))


def settle(threads: Sequence[tuple[int, bytes]]) -> None:
    """Give each the registers (user_regs_struct), and have it go from any stop to one that `ptrace.interrupt` brings:
    the kernel looks for that before it looks for signals, and before any instruction is run (get_signal(),
    kernel/signal.c). To be waited for. OSError as of `survey`: none is left out for another's sake."""
    room = bytearray(b"".join(registers for _, registers in threads))
    tids = [tid for tid, _ in threads]
    calls = Calls()
    calls.add_table(
        len(tids),
        (ptrace.NUMBER, ptrace.SETREGS, tids, 0, _each(room, ptrace.REGS_SIZE)),
        (ptrace.NUMBER, ptrace.INTERRUPT, tids, 0, 0),
        (ptrace.NUMBER, ptrace.CONT, tids, 0, 0),
    )
    _make(calls, tids, (0, 0, 0))


def set_options(tids: Sequence[int], options: int) -> dict[int, int]:
    """Replace the options given to `ptrace.seize`; for each thread 0 or -errno."""
    calls = Calls()
    calls.add_table(len(tids), (ptrace.NUMBER, ptrace.SETOPTIONS, tids, 0, options))
    return dict(zip(tids, calls.make(), strict=True))


def places(tids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """r12 and rip of those that are there; one that was killed is left out."""
    room, calls = bytearray(ptrace.REGS_SIZE * len(tids)), Calls()
    calls.add_table(len(tids), (ptrace.NUMBER, ptrace.GETREGS, tids, 0, _each(room, ptrace.REGS_SIZE)))
    found = {}
    for index, (tid, result) in enumerate(zip(tids, calls.make(), strict=True)):
        if result >= 0:
            found[tid] = _PLACE.unpack_from(room, index * ptrace.REGS_SIZE)
        elif result != -errno.ESRCH:
            raise OSError(-result, f"registers of thread {tid}: {os.strerror(-result)}")
    return found


def stops(tids: Sequence[int]) -> dict[int, ptrace.Stop]:
    """What those that have something to report at this moment report (wait4(2))."""
    room, calls = bytearray(8 * len(tids)), Calls()
    calls.add_table(len(tids), (ptrace.WAIT4, tids, _each(room, 8), ptrace.WALL | ptrace.WNOHANG, 0))
    found = {}
    for index, (tid, result) in enumerate(zip(tids, calls.make(), strict=True)):
        if result == tid:
            found[tid] = ptrace.Stop(*_STATUS.unpack_from(room, index * 8))
    return found


def _each(room: bytearray, stride: int) -> range:
    """The addresses of the pieces of ``room``."""
    base = address_of(room)
    return range(base, base + len(room), stride)


def _make(calls: Calls, tids: Sequence[int], may_fail: Sequence[int] = (0,)) -> list[int]:
    """``may_fail``: of the calls about each thread in turn, the errno that is none, or 0."""
    results = calls.make()
    if results and min(results) < 0:
        for index, result in enumerate(results):
            which, call = divmod(index, len(may_fail))
            if result < 0 and -result != may_fail[call]:
                raise OSError(-result, f"looking at thread {tids[which]}: {os.strerror(-result)}")
    return results

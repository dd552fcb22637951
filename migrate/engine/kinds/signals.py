"""What a process does with signals, and the signals it has not seen yet.

Actions belong to the process, the alternate stack to a thread; a signal waits either for one thread or for whichever
takes it first. The mask is the tracer's to read and to set (PTRACE_GETSIGMASK, PTRACE_SETSIGMASK): while a program
runs in the task, everything is blocked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from migrate.engine.program import Program, Results
from migrate.errors import Problem

SIGNALS = 64  # _NSIG, asm/signal.h
SIGKILL, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU = 9, 18, 19, 20, 21, 22
SET_SIZE = 8  # bytes of the kernel's sigset_t
SIGINFO_SIZE = 128  # sizeof(siginfo_t)
_ACTION = struct.Struct("<QQQQ")  # the kernel's struct sigaction: handler, flags, restorer, mask; not libc's order
_ACTION_32 = struct.Struct("<IIIQ")  # struct compat_sigaction (linux/compat.h)
_STACK = struct.Struct("<QiIQ")  # stack_t: sp, flags, padding, size
_SIGINFO_HEAD = struct.Struct("<iii")  # si_signo, si_errno, si_code
SA_NODEFER = 0x40000000  # asm-generic/signal-defs.h
SS_ONSTACK, SS_AUTODISARM = 1, 1 << 31


@dataclass(frozen=True)
class Action:
    """What one signal does: kernel words, so handler 0 is SIG_DFL and 1 is SIG_IGN."""

    handler: int
    flags: int
    restorer: int
    mask: int


DEFAULT = Action(0, 0, 0, 0)
_NOTHING = bytes(_ACTION.size)


@dataclass(frozen=True)
class SignalActions:
    """The actions of signals 1 to 64, in order."""

    actions: tuple[Action, ...]

    @cached_property
    def nodefer(self) -> bool:
        """Whether there are signals that are not blocked while their handlers run."""
        return any(action.flags & SA_NODEFER for action in self.actions)

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results], SignalActions]:
        """62 ops: SIGKILL and SIGSTOP cannot have any action but their own (sigaction(2))."""
        room = program.space(SIGNALS * _ACTION.size)
        for signal in _settable():
            place = room.at((signal - 1) * _ACTION.size)
            program.syscall("rt_sigaction", signal, 0, place, SET_SIZE, label=f"action of signal {signal}")

        def decode(results: Results) -> SignalActions:
            return cls(_actions(results.bytes(room)))

        return decode

    @staticmethod
    def reset(program: Program) -> None:
        """Every action the default one, long before the freeze: a restoree inherits what its agent ignored (Python:
        SIGPIPE)."""
        default = program.data(_NOTHING)
        for signal in _settable():
            program.syscall("rt_sigaction", signal, default, 0, SET_SIZE, label=f"default action of signal {signal}")

    def restore(self, program: Program, compat: bool = False) -> None:
        """Those that are not the default one; after `reset`. ``compat``: by the call of 32-bit code, which the kernel
        tells by what frames the handlers get (SA_IA32_ABI, kept to itself: sigaction_compat_abi()).

        To be done before any signal is queued: setting an action to ignore flushes the signal (do_sigaction,
        kernel/signal.c).
        """
        for signal in _settable():
            action = self.actions[signal - 1]
            if action == DEFAULT:
                continue
            call, layout = (program.call32, _ACTION_32) if compat else (program.syscall, _ACTION)
            raw = program.data(layout.pack(action.handler, action.flags, action.restorer, action.mask))
            call("rt_sigaction", signal, raw, 0, SET_SIZE, label=f"action of signal {signal}")


@lru_cache(maxsize=8)
def _actions(raw: bytes) -> tuple[Action, ...]:
    # Kept from the rehearsal: a process that runs steadily does not change them.
    pieces = (raw[at : at + _ACTION.size] for at in range(0, len(raw), _ACTION.size))
    return tuple(DEFAULT if piece == _NOTHING else Action(*_ACTION.unpack(piece)) for piece in pieces)


def _settable() -> Iterable[int]:
    return (signal for signal in range(1, SIGNALS + 1) if signal not in (SIGKILL, SIGSTOP))


@dataclass(frozen=True)
class AlternateStack:
    """sigaltstack(2) of one thread. ``flags`` without SS_ONSTACK: that follows from the stack pointer."""

    pointer: int
    flags: int
    size: int

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results], AlternateStack]:
        """One op. The kernel reckons SS_ONSTACK from the parasite's stack pointer, so it says nothing."""
        room = program.space(_STACK.size)
        program.syscall("sigaltstack", 0, room, label="alternate signal stack")

        def decode(results: Results) -> AlternateStack:
            pointer, flags, _, size = _STACK.unpack(results.bytes(room))
            return cls(pointer, flags & 0xFFFF_FFFF & ~SS_ONSTACK, size)

        return decode

    def restore(self, program: Program) -> None:
        stack = program.data(_STACK.pack(self.pointer, _signed(self.flags), 0, self.size))
        program.syscall("sigaltstack", stack, 0, label="alternate signal stack")


def _signed(flags: int) -> int:
    return flags - (1 << 32) if flags & SS_AUTODISARM else flags


@dataclass(frozen=True)
class SignalQueue:
    """Signals that wait, in their order: 128-byte siginfo_t each, as the kernel will hand them out."""

    records: tuple[bytes, ...]

    @classmethod
    def from_outside(cls, peeked: Iterable[bytes], pending: int) -> SignalQueue:
        """``peeked``: what PTRACE_PEEKSIGINFO lists (ptrace(2)); ``pending``: the set, SigPnd or ShdPnd of status.

        A signal can be in the set without a record, when the kernel had no memory or the limit of queued signals was
        reached (__send_signal_locked). It will be handed out as from SI_USER and nobody (collect_signal), so that is
        what stands for it here.
        """
        records = [bytes(record).ljust(SIGINFO_SIZE, b"\0") for record in peeked]
        listed = {number(record) for record in records}
        for signal in range(1, SIGNALS + 1):
            if pending >> (signal - 1) & 1 and signal not in listed:
                records.append(_SIGINFO_HEAD.pack(signal, 0, 0).ljust(SIGINFO_SIZE, b"\0"))
        return cls(tuple(records))

    @property
    def stops(self) -> bool:
        """A SIGSTOP is on its way. It cannot be blocked, so it is not queued again: the task is let go as stopped."""
        return any(number(record) == SIGSTOP for record in self.records)

    def problems(self, where: str) -> list[Problem]:
        """A SIGKILL on its way: nothing is left to move."""
        if any(number(record) == SIGKILL for record in self.records):
            return [Problem(where, "is being killed (SIGKILL is pending)")]
        return []

    def restore(self, program: Program, thread: int | None = None) -> None:
        """Queue them again, all signals being blocked (blocked signals are kept even where they would be ignored:
        sig_ignored, kernel/signal.c).

        ``thread``: the TID whose own queue this is; that thread runs the op. None: the queue of the process, and the
        main thread runs it. Only so may si_code be anything: the kernel lets nobody pretend to be the kernel, kill(2)
        or tgkill(2) but towards itself, ``task_pid_vnr(current) != pid`` in do_rt_sigqueueinfo and
        do_rt_tgsigqueueinfo ("signal: allow to send any siginfo to itself", Linux 3.9).
        """
        process = program.syscall("getpid", label="own number") if self.records else 0
        for record in self.records:
            signal = number(record)
            if signal in (SIGKILL, SIGSTOP):
                continue
            info, label = program.data(record), f"pending signal {signal}"
            if thread is None:
                program.syscall("rt_sigqueueinfo", process, signal, info, label=label)
            else:
                program.syscall("rt_tgsigqueueinfo", process, thread, signal, info, label=label)


def number(record: bytes) -> int:
    """si_signo."""
    return int.from_bytes(record[:4], "little")

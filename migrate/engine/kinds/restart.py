"""How an interrupted system call goes on at the destination.

A stop interrupts a sleeping thread, and its registers show how the kernel means to go on: the number of the call in
orig_rax, and in rax an error that user space never sees. -ERESTARTSYS, -ERESTARTNOINTR and -ERESTARTNOHAND mean the
same call again; the registers are given to the destination's kernel as they are, and it does so by its own rules, a
signal handler included. -ERESTART_RESTARTBLOCK means restart_syscall(2), which goes on with a deadline that the
source's kernel keeps, and that nobody can read. For that the best continuation is found here:

- A sleep that was told where to write the remainder goes on with the remainder, which the kernel has just written there
  (nanosleep_copyout, kernel/time/hrtimer.c: on every interruption, before a restart is thought of). It lasts longer by
  the downtime; a sleep may. The register of the request then differs from before, unlike after any other call (only
  rax, rcx and r11 do). Code that inlines the call and counts on it would have to sleep again with the same request to
  notice, and would then sleep for the remainder. sleep(3) passes one address for both.
- A futex wait with an absolute deadline (FUTEX_WAIT_BITSET: all of glibc's and Rust's timed waits) and a poll without a
  timeout are issued again, and lose nothing.
- All else ends with EINTR: a futex wait, a sleep or a poll with a relative timeout. It could be issued again with the
  whole timeout, but that stretches a wait by any length, for programs that pace or supervise with it, and each move
  stretches it anew. EINTR is among the documented results; who waits on a futex has to look again anyway (futex(2));
  who polls reckons his timeout anew. A program that takes EINTR from poll for fatal is wrong, but would have lived
  here: this is the least bad, not good. The deadline could be estimated, at best, from se.exec_start in
  /proc/PID/task/TID/sched (when the thread last ran, if CONFIG_SCHED_DEBUG is set and no stop has come since).

A thread that has been stopped before, by us in a rehearsal or by a SIGSTOP, is in restart_syscall: the arguments in its
registers are still those of the first call, the number is not. It is kept from the earlier stop (`Wait`), or found in
the code, where compilers put it right before the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds.identity import ReadMemory

ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR = 514, 516, 4  # linux/errno.h
TIMER_ABSTIME = 1
FUTEX_WAIT_BITSET, FUTEX_COMMAND = 9, 0x7F  # linux/futex.h; the command without its flags
_POLL, _NANOSLEEP, _FUTEX, _CLOCK_NANOSLEEP = (NUMBERS[n] for n in ("poll", "nanosleep", "futex", "clock_nanosleep"))
_RESTART_SYSCALL = NUMBERS["restart_syscall"]
_INSTRUCTION = b"\x0f\x05"  # syscall
_LOOK_BACK = 32  # bytes before it
_LOAD_EAX = 0xB8  # mov $imm32, %eax


class Frame(Protocol):
    """General registers, unsigned; `replace` takes negative numbers too."""

    @property
    def rax(self) -> int: ...
    @property
    def orig_rax(self) -> int: ...
    @property
    def rip(self) -> int: ...
    @property
    def rsp(self) -> int: ...
    @property
    def rdi(self) -> int: ...
    @property
    def rsi(self) -> int: ...
    @property
    def rdx(self) -> int: ...
    @property
    def r10(self) -> int: ...
    def replace(self, **changes: int) -> Self: ...


F = TypeVar("F", bound=Frame)


@dataclass(frozen=True)
class Wait:
    """A call with a restart block, seen when it was interrupted for the first time."""

    number: int
    rip: int
    rsp: int
    arguments: tuple[int, int, int, int]

    @classmethod
    def seen(cls, frame: Frame, earlier: Wait | None = None) -> Wait | None:
        """What to remember of a stop before the thread is let go again. ``earlier``: of the stop before this one."""
        if not _has_restart_block(frame):
            return None
        if frame.orig_rax != _RESTART_SYSCALL:
            return cls(frame.orig_rax, frame.rip, frame.rsp, _arguments(frame))
        return earlier if earlier is not None and earlier.matches(frame) else None

    def matches(self, frame: Frame) -> bool:
        """The thread is still at the same instruction, with the same stack and arguments. It may be in a later call
        from the same loop, which is just as well: it is the same call."""
        return (self.rip, self.rsp, self.arguments) == (frame.rip, frame.rsp, _arguments(frame))

    def stopped_again(self, frame: F) -> F:
        """A thread that was let go and has not come to run since stands before the instruction, with restart_syscall in
        rax (arch_do_signal_or_restart()): it is as it was when it had been interrupted."""
        back = frame.replace(rip=frame.rip + len(_INSTRUCTION), orig_rax=_RESTART_SYSCALL, rax=-ERESTART_RESTARTBLOCK)
        return back if frame.rax == _RESTART_SYSCALL and self.matches(back) else frame


def restart(frame: F, read: ReadMemory, earlier: Wait | None = None) -> F:
    """The registers for the destination. ``read`` reads the task's memory and may raise OSError; ``earlier``: what
    `Wait.seen` gave at the last stop."""
    if earlier is not None:
        frame = earlier.stopped_again(frame)
    if not _has_restart_block(frame):
        return uninterrupted(frame)
    number = frame.orig_rax
    if number == _RESTART_SYSCALL:
        if earlier is not None and earlier.matches(frame):
            number = earlier.number
        else:
            number = _number_in_code(frame.rip, read)
    again = frame.replace(orig_rax=number, rax=-ERESTARTNOHAND)  # EINTR if a handler runs, as it would have been here
    if number == _NANOSLEEP and frame.rsi:
        return again.replace(rdi=frame.rsi)
    if number == _CLOCK_NANOSLEEP and frame.rsi & TIMER_ABSTIME:
        return again
    if number == _CLOCK_NANOSLEEP and frame.r10:
        return again.replace(rdx=frame.r10)
    if number == _FUTEX and frame.rsi & FUTEX_COMMAND == FUTEX_WAIT_BITSET:
        return again
    if number == _POLL and _negative(frame.rdx):
        return again
    return frame.replace(rax=-EINTR)


def uninterrupted(frame: F) -> F:
    """Some calls end with EINTR at every stop, handler or not (signal(7), "Interruption of system calls and library
    functions by stop signals"). Where they wait without a deadline the stop need not be seen: they are issued again,
    and end with EINTR only if a handler runs. To be used on the source too, when a thread is let go."""
    if frame.rax != _unsigned(-EINTR):
        return frame
    forever = _FOREVER.get(frame.orig_rax)
    return frame.replace(rax=-ERESTARTNOHAND) if forever is not None and forever(frame) else frame


_FOREVER: dict[int, Callable[[Frame], bool]] = {
    NUMBERS["epoll_wait"]: lambda frame: _negative(frame.r10),
    NUMBERS["epoll_pwait"]: lambda frame: _negative(frame.r10),
    NUMBERS["epoll_pwait2"]: lambda frame: not frame.r10,
    NUMBERS["semop"]: lambda frame: True,
    NUMBERS["semtimedop"]: lambda frame: not frame.r10,
    NUMBERS["rt_sigtimedwait"]: lambda frame: not frame.rdx,
}


def _has_restart_block(frame: Frame) -> bool:
    return frame.rax == _unsigned(-ERESTART_RESTARTBLOCK) and not frame.orig_rax >> 63


def _number_in_code(rip: int, read: ReadMemory) -> int:
    """The number that is loaded nearest before the instruction that brought the thread into the kernel; -1: none."""
    try:
        code = read(rip - len(_INSTRUCTION) - _LOOK_BACK, _LOOK_BACK + len(_INSTRUCTION))
    except OSError:
        return -1  # less code than that before it in the mapping: not known, which has its own answer
    if not code.endswith(_INSTRUCTION):
        return -1
    for at in range(_LOOK_BACK - 5, -1, -1):
        if code[at] == _LOAD_EAX:
            number = int.from_bytes(code[at + 1 : at + 5], "little")
            if number in (_POLL, _NANOSLEEP, _FUTEX, _CLOCK_NANOSLEEP):
                return number
    return -1


def _arguments(frame: Frame) -> tuple[int, int, int, int]:
    return frame.rdi, frame.rsi, frame.rdx, frame.r10


def _negative(value: int) -> bool:
    """As the kernel takes it for an int."""
    return bool(value >> 31 & 1)


def _unsigned(value: int) -> int:
    return value & 0xFFFF_FFFF_FFFF_FFFF

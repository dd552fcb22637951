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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from migrate.engine.kernel.syscalls import NUMBERS, NUMBERS_32
from migrate.engine.kinds.identity import ReadMemory

ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR = 514, 516, 4  # linux/errno.h
TIMER_ABSTIME = 1
FUTEX_WAIT_BITSET, FUTEX_COMMAND = 9, 0x7F  # linux/futex.h; the command without its flags
_LOOK_BACK = 32  # bytes before it
_LOAD_EAX = 0xB8  # mov $imm32, %eax


class Frame(Protocol):
    """General registers, unsigned; `replace` takes negative numbers too. ``compat``: of a thread of 32 bits."""

    @property
    def compat(self) -> bool: ...
    @property
    def rax(self) -> int: ...
    @property
    def orig_rax(self) -> int: ...
    @property
    def rip(self) -> int: ...
    @property
    def rsp(self) -> int: ...
    def replace(self, **changes: int) -> Self: ...


F = TypeVar("F", bound=Frame)
Arguments = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Abi:
    """How code makes system calls. ``instruction``: that leads into the kernel, or stands where it comes back to;
    ``registers``: of the first four arguments; ``forever``: calls that wait, and by their arguments whether without a
    deadline."""

    instruction: bytes
    registers: tuple[str, str, str, str]
    restart: int
    poll: int
    nanosleep: int
    futexes: tuple[int, ...]
    clock_nanosleeps: tuple[int, ...]
    forever: Mapping[int, Callable[[Arguments], bool]]

    @property
    def restartable(self) -> tuple[int, ...]:
        """Calls with a restart block."""
        return self.poll, self.nanosleep, *self.futexes, *self.clock_nanosleeps


_SEMOP = 1  # first argument of ipc(2)

_NATIVE = _Abi(
    b"\x0f\x05",  # syscall
    ("rdi", "rsi", "rdx", "r10"),
    *(NUMBERS["restart_syscall"], NUMBERS["poll"], NUMBERS["nanosleep"]),
    (NUMBERS["futex"],),
    (NUMBERS["clock_nanosleep"],),
    {
        NUMBERS["epoll_wait"]: lambda args: _negative(args[3]),
        NUMBERS["epoll_pwait"]: lambda args: _negative(args[3]),
        NUMBERS["epoll_pwait2"]: lambda args: not args[3],
        NUMBERS["semop"]: lambda args: True,
        NUMBERS["semtimedop"]: lambda args: not args[3],
        NUMBERS["rt_sigtimedwait"]: lambda args: not args[2],
    },
)
_IA32 = _Abi(
    b"\xcd\x80",  # int $0x80: also behind sysenter and syscall in the vDSO, which come back behind it
    ("rbx", "rcx", "rdx", "rsi"),
    *(NUMBERS_32["restart_syscall"], NUMBERS_32["poll"], NUMBERS_32["nanosleep"]),
    (NUMBERS_32["futex"], NUMBERS_32["futex_time64"]),
    (NUMBERS_32["clock_nanosleep"], NUMBERS_32["clock_nanosleep_time64"]),
    {
        NUMBERS_32["epoll_wait"]: lambda args: _negative(args[3]),
        NUMBERS_32["epoll_pwait"]: lambda args: _negative(args[3]),
        NUMBERS_32["epoll_pwait2"]: lambda args: not args[3],
        NUMBERS_32["ipc"]: lambda args: args[0] & 0xFFFF == _SEMOP,
        NUMBERS_32["semtimedop_time64"]: lambda args: not args[3],
        NUMBERS_32["rt_sigtimedwait"]: lambda args: not args[2],
        NUMBERS_32["rt_sigtimedwait_time64"]: lambda args: not args[2],
    },
)


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
        if frame.orig_rax != _abi(frame).restart:
            return cls(frame.orig_rax, frame.rip, frame.rsp, _arguments(frame))
        return earlier if earlier is not None and earlier.matches(frame) else None

    def matches(self, frame: Frame) -> bool:
        """The thread is still at the same instruction, with the same stack and arguments. It may be in a later call
        from the same loop, which is just as well: it is the same call."""
        return (self.rip, self.rsp, self.arguments) == (frame.rip, frame.rsp, _arguments(frame))

    def stopped_again(self, frame: F) -> F:
        """A thread that was let go and has not come to run since stands before the instruction, with restart_syscall in
        rax (arch_do_signal_or_restart()): it is as it was when it had been interrupted."""
        abi = _abi(frame)
        back = frame.replace(
            rip=frame.rip + len(abi.instruction), orig_rax=abi.restart, rax=-ERESTART_RESTARTBLOCK
        )
        return back if frame.rax == abi.restart and self.matches(back) else frame


def restart(frame: F, read: ReadMemory, earlier: Wait | None = None) -> F:
    """The registers for the destination. ``read`` reads the task's memory and may raise OSError; ``earlier``: what
    `Wait.seen` gave at the last stop."""
    if earlier is not None:
        frame = earlier.stopped_again(frame)
    if not _has_restart_block(frame):
        return uninterrupted(frame)
    abi, number = _abi(frame), frame.orig_rax
    if number == abi.restart:
        if earlier is not None and earlier.matches(frame):
            number = earlier.number
        else:
            number = _number_in_code(frame.rip, abi, read)
    again = frame.replace(orig_rax=number, rax=-ERESTARTNOHAND)  # EINTR if a handler runs, as it would have been here
    first, second, third, fourth = _arguments(frame)
    if number == abi.nanosleep and second:
        return again.replace(**{abi.registers[0]: second})
    if number in abi.clock_nanosleeps and second & TIMER_ABSTIME:
        return again
    if number in abi.clock_nanosleeps and fourth:
        return again.replace(**{abi.registers[2]: fourth})
    if number in abi.futexes and second & FUTEX_COMMAND == FUTEX_WAIT_BITSET:
        return again
    if number == abi.poll and _negative(third):
        return again
    return frame.replace(rax=-EINTR)


def uninterrupted(frame: F) -> F:
    """Some calls end with EINTR at every stop, handler or not (signal(7), "Interruption of system calls and library
    functions by stop signals"). Where they wait without a deadline the stop need not be seen: they are issued again,
    and end with EINTR only if a handler runs. To be used on the source too, when a thread is let go."""
    if frame.rax != _unsigned(-EINTR):
        return frame
    forever = _abi(frame).forever.get(frame.orig_rax)
    return frame.replace(rax=-ERESTARTNOHAND) if forever is not None and forever(_arguments(frame)) else frame


def _abi(frame: Frame) -> _Abi:
    return _IA32 if frame.compat else _NATIVE


def _has_restart_block(frame: Frame) -> bool:
    return frame.rax == _unsigned(-ERESTART_RESTARTBLOCK) and not frame.orig_rax >> 63


def _number_in_code(rip: int, abi: _Abi, read: ReadMemory) -> int:
    """The number that is loaded nearest before the instruction that brought the thread into the kernel; -1: none."""
    try:
        code = read(rip - len(abi.instruction) - _LOOK_BACK, _LOOK_BACK + len(abi.instruction))
    except OSError:
        return -1  # less code than that before it in the mapping: not known, which has its own answer
    if not code.endswith(abi.instruction):
        return -1
    for at in range(_LOOK_BACK - 5, -1, -1):
        if code[at] == _LOAD_EAX:
            number = int.from_bytes(code[at + 1 : at + 5], "little")
            if number in abi.restartable:
                return number
    return -1


def _arguments(frame: Frame) -> Arguments:
    first, second, third, fourth = (getattr(frame, name) for name in _abi(frame).registers)
    return first, second, third, fourth


def _negative(value: int) -> bool:
    """As the kernel takes it for an int."""
    return bool(value >> 31 & 1)


def _unsigned(value: int) -> int:
    return value & 0xFFFF_FFFF_FFFF_FFFF

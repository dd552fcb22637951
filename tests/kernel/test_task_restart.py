"""Threads caught in a system call: how it goes on where the kernel has forgotten the deadline.

A child sleeps; it is stopped; its registers are turned into what the destination would be given, and put back. Nothing
is left then of the source's restart block: the kernel does with the registers what the destination's kernel would.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cffi import FFI

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds.restart import Wait, restart, uninterrupted
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.registers import Registers
from tests.kernel.actors import wait_stop

ffi = FFI()
ffi.cdef(
    """
    struct timespec { long tv_sec; long tv_nsec; };
    struct pollfd { int fd; short events; short revents; };
    int nanosleep(const struct timespec *, struct timespec *);
    int clock_nanosleep(int, int, const struct timespec *, struct timespec *);
    unsigned sleep(unsigned);
    int poll(struct pollfd *, unsigned long, int);
    long syscall(long, ...);
    int epoll_create1(int);
    int epoll_wait(int, void *, int, int);
    """
)
libc: Any = ffi.dlopen(None)
TENTH = 100_000_000
FUTEX_WAIT, FUTEX_WAIT_BITSET = 128, 9 | 128  # FUTEX_PRIVATE_FLAG
RESTART_BLOCK, NO_HANDLER, SYS = -516, -514, -512


@dataclass
class Sleeper:
    pid: int
    result: int

    def stop(self) -> Registers:
        ptrace.interrupt(self.pid)
        wait_stop(self.pid)
        return Registers.unpack(ptrace.get_registers(self.pid))

    def read(self, address: int, length: int) -> bytes:
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        try:
            return os.pread(fd, length, address)
        finally:
            os.close(fd)

    def go(self, registers: Registers | None = None) -> None:
        if registers is not None:
            ptrace.set_registers(self.pid, registers.pack())
        ptrace.cont(self.pid)

    def end(self) -> tuple[int, int, float]:
        """What it returned, errno, and how long it took by its own clock, in seconds."""
        return struct.unpack("<qid", os.read(self.result, 64))


@contextmanager
def sleeper(call: Callable[[], int]) -> Iterator[Sleeper]:
    """A child in ``call``, seized while it is there."""
    result, theirs = os.pipe()
    ready, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        os.write(started, b"x")
        start = time.monotonic()
        returned = call()
        number = ffi.errno
        os.write(theirs, struct.pack("<qid", returned, number if returned < 0 else 0, time.monotonic() - start))
        os._exit(0)
    os.close(theirs)
    os.close(started)
    try:
        os.read(ready, 1)
        time.sleep(0.03)
        ptrace.seize(pid)
        yield Sleeper(pid, result)
    finally:
        os.kill(pid, 9)
        while True:
            status = os.waitpid(pid, 0)[1]
            if os.WIFSIGNALED(status) or os.WIFEXITED(status):
                break
        os.close(result)
        os.close(ready)


def _spec(nanoseconds: int) -> Any:
    return ffi.new("struct timespec *", divmod(nanoseconds, 1_000_000_000))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


REQUEST, REMAINDER = _spec(3 * TENTH), _spec(0)


def _nanosleep() -> int:
    return int(libc.nanosleep(REQUEST, REMAINDER))


def test_the_kernel_writes_the_remainder_when_a_stop_interrupts() -> None:
    """What going on with the remainder rests upon."""
    with sleeper(_nanosleep) as child:
        registers = child.stop()
        assert _signed(registers.rax) == RESTART_BLOCK
        assert registers.rsi or registers.r10
        left = struct.unpack("<qq", child.read(int(ffi.cast("uintptr_t", REMAINDER)), 16))
        assert left[0] == 0 and TENTH < left[1] < 3 * TENTH
        assert child.read(int(ffi.cast("uintptr_t", REQUEST)), 16) == struct.pack("<qq", 0, 3 * TENTH)


def test_a_sleep_goes_on_with_the_remainder() -> None:
    with sleeper(_nanosleep) as child:
        time.sleep(0.15)
        registers = child.stop()
        again = restart(registers, child.read)
        assert _signed(again.rax) == NO_HANDLER
        child.go(again)
        returned, _, seconds = child.end()
        assert returned == 0 and 0.3 <= seconds < 0.44


def _bare_nanosleep() -> int:
    return int(libc.syscall(ffi.cast("long", 35), REQUEST, REMAINDER))


def test_a_sleep_interrupted_again_and_again() -> None:
    """As after a rehearsal: the thread is in restart_syscall, and its number is known from the first stop only, as
    syscall(3) does not have it in the code."""
    with sleeper(_bare_nanosleep) as child:
        wait = None
        for _ in range(3):
            registers = child.stop()
            wait = Wait.seen(registers, wait)
            assert wait is not None and wait.number == NUMBERS["nanosleep"]
            child.go()
            time.sleep(0.05)
        registers = child.stop()
        assert registers.orig_rax == NUMBERS["restart_syscall"]
        assert _signed(restart(registers, child.read).rax) == -errno.EINTR
        again = restart(registers, child.read, wait)
        assert (again.orig_rax, again.rdi) == (NUMBERS["nanosleep"], registers.rsi)
        child.go(again)
        returned, _, seconds = child.end()
        assert returned == 0 and 0.3 <= seconds < 0.44


def test_a_sleep_stopped_before_it_was_entered_again() -> None:
    """On a busy machine a thread may be stopped again before it has come to run: it stands before restart_syscall."""
    with sleeper(_bare_nanosleep) as child:
        registers = child.stop()
        wait = Wait.seen(registers)
        for number in (NUMBERS["nanosleep"], -1):  # by a stop on the way to user space, or from there
            before = registers.restarted().replace(orig_rax=number)
            assert before.rip == registers.rip - 2 and before.rax == NUMBERS["restart_syscall"]
            assert restart(before, child.read, wait) == restart(registers, child.read, wait)
            assert restart(before, child.read) == before, "nothing is known of it"
            elsewhere = before.replace(rip=before.rip - 8)
            assert restart(elsewhere, child.read, wait) == elsewhere
        child.go()
        assert child.end()[0] == 0


def test_the_number_is_found_in_the_code() -> None:
    with sleeper(_nanosleep) as child:
        child.stop()
        child.go()
        time.sleep(0.15)
        registers = child.stop()
        assert registers.orig_rax == NUMBERS["restart_syscall"]
        again = restart(registers, child.read)
        assert again.orig_rax in (NUMBERS["nanosleep"], NUMBERS["clock_nanosleep"])
        child.go(again)
        returned, _, seconds = child.end()
        assert returned == 0 and 0.3 <= seconds < 0.44


def _sleep_without_remainder() -> int:
    return int(libc.nanosleep(_spec(3 * TENTH), ffi.NULL))


def test_a_sleep_without_remainder_ends() -> None:
    with sleeper(_sleep_without_remainder) as child:
        child.go(restart(child.stop(), child.read))
        returned, number, seconds = child.end()
        assert (returned, number) == (-1, errno.EINTR) and seconds < 0.3


def _sleep_3() -> int:
    return int(libc.sleep(1))


def test_sleep_3_sleeps_its_time() -> None:
    with sleeper(_sleep_3) as child:
        time.sleep(0.4)
        child.go(restart(child.stop(), child.read))
        returned, _, seconds = child.end()
        assert returned == 0 and 1.0 <= seconds < 1.35


def _absolute_sleep() -> int:
    return int(libc.clock_nanosleep(1, 1, _spec(time.monotonic_ns() + 3 * TENTH), ffi.NULL))


def test_an_absolute_sleep_needs_nothing() -> None:
    with sleeper(_absolute_sleep) as child:
        registers = child.stop()
        assert _signed(registers.rax) == NO_HANDLER
        assert restart(registers, child.read) == registers
        child.go(registers)
        returned, _, seconds = child.end()
        assert returned == 0 and 0.29 <= seconds < 0.5


WORD = ffi.new("int *")


def _futex_until() -> int:
    when = _spec(time.monotonic_ns() + 3 * TENTH)
    op, any_bit = ffi.cast("int", FUTEX_WAIT_BITSET), ffi.cast("unsigned", 0xFFFFFFFF)
    return int(libc.syscall(ffi.cast("long", 202), WORD, op, ffi.cast("int", 0), when, ffi.NULL, any_bit))


def test_a_futex_wait_keeps_its_absolute_deadline() -> None:
    with sleeper(_futex_until) as child:
        registers = child.stop()
        assert _signed(registers.rax) == RESTART_BLOCK
        again = restart(registers, child.read)
        assert again == registers.replace(rax=NO_HANDLER)
        child.go(again)
        returned, number, seconds = child.end()
        assert (returned, number) == (-1, errno.ETIMEDOUT) and 0.29 <= seconds < 0.5


def _futex_for() -> int:
    op, number = ffi.cast("int", FUTEX_WAIT), ffi.cast("long", 202)
    return int(libc.syscall(number, WORD, op, ffi.cast("int", 0), _spec(3 * TENTH), ffi.NULL, ffi.cast("int", 0)))


def test_a_relative_futex_wait_ends() -> None:
    with sleeper(_futex_for) as child:
        registers = child.stop()
        assert _signed(registers.rax) == RESTART_BLOCK
        child.go(restart(registers, child.read))
        returned, number, seconds = child.end()
        assert (returned, number) == (-1, errno.EINTR) and seconds < 0.3


def _futex_for_ever() -> int:
    op, number = ffi.cast("int", FUTEX_WAIT), ffi.cast("long", 202)
    return int(libc.syscall(number, WORD, op, ffi.cast("int", 0), ffi.NULL, ffi.NULL, ffi.cast("int", 0)))


def test_a_futex_wait_without_timeout_needs_nothing() -> None:
    with sleeper(_futex_for_ever) as child:
        registers = child.stop()
        assert _signed(registers.rax) == SYS
        assert restart(registers, child.read) == registers


def _poll(timeout: int) -> int:
    return int(libc.poll(ffi.NULL, 0, timeout))


def _poll_for_ever() -> int:
    return _poll(-1)


def _poll_for() -> int:
    return _poll(300)


def test_poll_without_timeout_goes_on() -> None:
    with sleeper(_poll_for_ever) as child:
        registers = child.stop()
        assert _signed(registers.rax) == RESTART_BLOCK
        child.go(restart(registers, child.read))
        time.sleep(0.05)
        again = child.stop()
        assert (again.rip, again.rdx, _signed(again.rax)) == (registers.rip, registers.rdx, RESTART_BLOCK)


def test_poll_with_timeout_ends() -> None:
    with sleeper(_poll_for) as child:
        child.go(restart(child.stop(), child.read))
        returned, number, seconds = child.end()
        assert (returned, number) == (-1, errno.EINTR) and seconds < 0.3


def _epoll(timeout: int) -> int:
    events = ffi.new("char[12]")
    return int(libc.epoll_wait(libc.epoll_create1(0), events, 1, timeout))


def _epoll_for_ever() -> int:
    return _epoll(-1)


def _epoll_for() -> int:
    return _epoll(300)


def test_epoll_does_not_see_the_stop() -> None:
    """It ends with EINTR at every stop (signal(7)); not here, and not on the source."""
    with sleeper(_epoll_for_ever) as child:
        for _ in range(3):
            registers = child.stop()
            assert _signed(registers.rax) == -errno.EINTR
            child.go(uninterrupted(registers))
            time.sleep(0.02)
        assert restart(child.stop(), child.read).orig_rax == NUMBERS["epoll_wait"]
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)


def test_epoll_with_a_handler_ends() -> None:
    with sleeper(_epoll_for_ever) as child:
        registers = child.stop()
        os.kill(child.pid, signal.SIGUSR1)
        child.go(uninterrupted(registers))
        assert wait_stop(child.pid).signal == signal.SIGUSR1
        ptrace.detach(child.pid, signal.SIGUSR1)
        returned, number, _ = child.end()
        assert (returned, number) == (-1, errno.EINTR)


def test_epoll_with_timeout_is_left_alone() -> None:
    with sleeper(_epoll_for) as child:
        registers = child.stop()
        assert restart(registers, child.read) == uninterrupted(registers) == registers


def _busy() -> int:
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass
    return 0


def test_a_running_thread_is_left_alone() -> None:
    with sleeper(_busy) as child:
        registers = child.stop()
        assert restart(registers, child.read) == registers
        assert Wait.seen(registers) is None
        child.go()
        time.sleep(0.01)
        child.go(restart(child.stop(), child.read))
        assert child.end()[0] == 0

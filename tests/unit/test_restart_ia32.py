"""How system calls of 32-bit code go on: other numbers, and arguments in other registers."""

from __future__ import annotations

import pytest

from migrate.engine.kernel.syscalls import NUMBERS_32
from migrate.engine.kinds.restart import Wait, restart, uninterrupted
from migrate.engine.tracee.registers import USER32_CS, Registers

AT = 0xF7F0_05E9  # behind int $0x80 in the vDSO
BLOCK, AGAIN, EINTR = -516, -514, -4


def thread(name: str, rax: int, *args: int) -> Registers:
    """In a system call, whose first arguments these are."""
    registers = dict(zip(("rbx", "rcx", "rdx", "rsi"), args, strict=False))
    bare = Registers.unpack(bytes(27 * 8)).replace(cs=USER32_CS, rip=AT, rsp=0xFFC0_0000)
    return bare.replace(orig_rax=NUMBERS_32[name], rax=rax, **registers)


def nothing(address: int, size: int) -> bytes:
    raise OSError


@pytest.mark.parametrize(("before", "changed"), [
    (thread("nanosleep", BLOCK, 0x1000, 0x2000), {"rbx": 0x2000, "rax": AGAIN}),
    (thread("nanosleep", BLOCK, 0x1000, 0), {"rax": EINTR}),
    (thread("clock_nanosleep_time64", BLOCK, 1, 1, 0x1000, 0), {"rax": AGAIN}),
    (thread("clock_nanosleep", BLOCK, 1, 0, 0x1000, 0x2000), {"rdx": 0x2000, "rax": AGAIN}),
    (thread("futex_time64", BLOCK, 0x1000, 9 | 128, 5, 0x2000), {"rax": AGAIN}),
    (thread("futex", BLOCK, 0x1000, 0, 5, 0x2000), {"rax": EINTR}),
    (thread("poll", BLOCK, 0x1000, 1, 0xFFFF_FFFF), {"rax": AGAIN}),
    (thread("poll", BLOCK, 0x1000, 1, 100), {"rax": EINTR}),
])
def test_with_a_deadline(before: Registers, changed: dict[str, int]) -> None:
    assert restart(before, nothing) == before.replace(**changed)


def test_a_second_stop() -> None:
    """By then the number is that of restart_syscall(2), which is 0 here."""
    first = thread("nanosleep", BLOCK, 0x1000, 0x2000)
    wait = Wait.seen(first)
    assert wait is not None
    again = first.replace(orig_rax=NUMBERS_32["restart_syscall"])
    assert restart(again, nothing, wait) == restart(first, nothing)
    assert restart(again, nothing).rax == EINTR & (1 << 64) - 1
    not_run_since = again.restarted()
    assert not_run_since.rip == AT - 2 and not_run_since.rax == NUMBERS_32["restart_syscall"]
    assert restart(not_run_since, nothing, wait) == restart(first, nothing)


def test_waits_without_a_deadline_hide_the_stop() -> None:
    forever = thread("epoll_wait", EINTR, 5, 0x1000, 1, 0xFFFF_FFFF)
    assert uninterrupted(forever) == forever.replace(rax=AGAIN)
    semop = thread("ipc", EINTR, 1, 7, 1)
    assert uninterrupted(semop) == semop.replace(rax=AGAIN)
    for other in (thread("epoll_wait", EINTR, 5, 0x1000, 1, 100), thread("ipc", EINTR, 4, 7, 1)):
        assert uninterrupted(other) is other

"""The general registers of a thread: struct user_regs_struct (sys/user.h)."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

_LAYOUT = struct.Struct("<27Q")
_MASK = 0xFFFF_FFFF_FFFF_FFFF

NO_SYSCALL = _MASK  # orig_rax of a thread that is not in a system call
USER32_CS, USER_CS = 0x23, 0x33  # arch/x86/include/asm/segment.h: code segments of 32 and of 64 bits

# include/linux/errno.h: what a system call that was interrupted returns inside the kernel
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
EINTR = 4
_RESTART_SYSCALL, _RESTART_SYSCALL_32 = 219, 0  # asm/unistd_64.h, asm/unistd_32.h
_RESTARTS = (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND)
_SYSCALL_INSTRUCTION = 2  # bytes, int $0x80 included


@dataclass(frozen=True)
class Registers:
    """All of them, unsigned, in the kernel's order."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    @classmethod
    def unpack(cls, raw: bytes) -> Registers:
        """From the bytes that ptrace gives. A thread that sleeps has the same ones at every look."""
        return _unpacked(raw)

    @classmethod
    def _of(cls, values: dict[str, int]) -> Self:
        # The constructor of a frozen dataclass sets one field after the other the slow way: 10 µs, for every thread.
        self = cls.__new__(cls)
        self.__dict__.update(values)
        return self

    def pack(self) -> bytes:
        """The bytes that ptrace takes."""
        return _LAYOUT.pack(*self.__dict__.values())

    def replace(self, **changes: int) -> Self:
        """The same with some of them changed; negative numbers may be given."""
        if not changes.keys() <= self.__dict__.keys():
            raise TypeError(f"no such registers: {sorted(changes.keys() - self.__dict__.keys())}")
        return self._of(self.__dict__ | {name: value & _MASK for name, value in changes.items()})

    @property
    def compat(self) -> bool:
        """It runs code of 32 bits."""
        return self.cs == USER32_CS

    @property
    def thread_pointer(self) -> int:
        """Where the thread's own variables are (ELF Handling For Thread-Local Storage)."""
        return self.gs_base if self.compat else self.fs_base

    @property
    def interrupted_with(self) -> int:
        """ERESTART… when the kernel is about to restart the system call that the stop interrupted; else 0."""
        error = (1 << 64) - self.rax
        if self.orig_rax >> 63 or error not in (*_RESTARTS, ERESTART_RESTARTBLOCK):
            return 0
        return error

    def restarted(self) -> Self:
        """What the kernel would make of it on the way to user space, no handler having run: the same system call again,
        or restart_syscall(2), which knows the deadline (arch_do_signal_or_restart in arch/x86/kernel/signal.c)."""
        error = self.interrupted_with
        if not error:
            return self
        restart = _RESTART_SYSCALL_32 if self.compat else _RESTART_SYSCALL
        number = restart if error == ERESTART_RESTARTBLOCK else self.orig_rax
        return self.replace(rax=number, rip=self.rip - _SYSCALL_INSTRUCTION)

    def after_handler(self) -> Self:
        """The same when a handler did run: EINTR where a call always ends by that. One that may be restarted is."""
        if self.interrupted_with in (ERESTARTNOHAND, ERESTART_RESTARTBLOCK):
            return self.replace(rax=-EINTR)
        return self.restarted()


@lru_cache(maxsize=4096)
def _unpacked(raw: bytes) -> Registers:
    return Registers._of(dict(zip(_NAMES, _LAYOUT.unpack(raw), strict=True)))


_NAMES = tuple(field.name for field in dataclasses.fields(Registers))

"""System calls that the overseer has a stopped thread of a restoree make, with the restorer's own `syscall`
instruction: what can be done only when the thread itself has nothing more to do."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.program import Buffer, OpKind, Program
from migrate.pie import BARE_SYSCALL

# ptrace(2), sys/ptrace.h
PTRACE_SYSCALL, PTRACE_GETREGSET, PTRACE_SETREGSET = 24, 0x4204, 0x4205
NT_PRSTATUS = 1
REGISTERS = 27 * 8  # bytes of user_regs_struct
WALL = 0x40000000  # wait4(2): children of any kind
STOP_SYSCALL = 0x857F  # wait status: (SIGTRAP | 0x80) << 8 | stopped
# user_regs_struct: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs gs…
_ARGUMENTS = (14, 13, 12, 7, 9, 8)
_RAX, _ORIG_RAX, _RIP = 10, 15, 16


@dataclass(frozen=True)
class RemoteCall:
    """A system call that the overseer has a thread make. ``thread``: its position."""

    thread: int
    name: str
    args: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class Confinement:
    """System calls that must succeed, and what has to lie at ``base`` meanwhile."""

    base: int
    content: bytes
    calls: tuple[RemoteCall, ...]


class Caller:
    """Adds such calls to a program of the overseer. ``code``: where the restorer is in the restoree."""

    def __init__(self, program: Program, code: int) -> None:
        self._program, self._code = program, code
        self._got, self._status = program.space(REGISTERS), program.space(8)
        self._iovec = iovec_of(program, self._got)

    def call(self, tid: int, name: str, args: Sequence[int], label: str, checked: bool = True) -> None:
        """One call of a thread in a ptrace-stop, in which it is afterwards as well. ``checked``: it must return 0."""
        program, iovec = self._program, self._iovec
        program.syscall("ptrace", PTRACE_GETREGSET, tid, NT_PRSTATUS, iovec, label=label)
        arguments = zip(_ARGUMENTS, args, strict=False)
        for index, value in (
            *((_RAX, NUMBERS[name]), (_ORIG_RAX, -1), (_RIP, self._code + BARE_SYSCALL)),
            *arguments,
        ):
            number = program.data(struct.pack("<q", value))
            program.op(OpKind.COPY, self._got.at(index * 8), number, 8, label=label)
        program.syscall("ptrace", PTRACE_SETREGSET, tid, NT_PRSTATUS, iovec, label=label)
        for _ in ("entry", "exit"):
            program.syscall("ptrace", PTRACE_SYSCALL, tid, 0, 0, label=label)
            wait_for(program, self._status, tid, STOP_SYSCALL, label)
        if checked:
            program.syscall("ptrace", PTRACE_GETREGSET, tid, NT_PRSTATUS, iovec, label=label)
            program.op(OpKind.CHECK, self._got.at(_RAX * 8), 0xFFFF_FFFF_FFFF_FFFF, 0, label=label)


def wait_for(program: Program, status: Buffer, tid: int, expected: int, label: str) -> None:
    """Until a thread is in that stop. ``status``: 8 bytes of room."""
    program.syscall("wait4", tid, status, WALL, 0, label=label, expect=tid)
    program.op(OpKind.CHECK, status, 0xFFFFFF, expected, label=label)


def iovec_of(program: Program, buffer: Buffer) -> Buffer:
    """struct iovec of it."""
    return program.data(struct.pack("<QQ", 0, buffer.size), pointers={0: buffer})

"""One op of a program, and the arguments it may take.

The layouts here and in ``migrate/pie/program.h`` are the same thing twice; ``tests/unit/test_program_layout.py``
compiles the header and checks that they agree.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

MAX_ERRNO = 4095  # include/linux/err.h: the last page of addresses is errors


class OpKind(enum.IntEnum):
    """What the interpreter does for an op. Everything that is not a system call is here because none can do it."""

    SYSCALL = 0
    COPY = 1  # (dst, src, length)
    CHECK = 2  # (address, mask, value): fail unless (u64 at address & mask) == value
    CLONE = 3  # (clone_args, size, op index of the child, code address or 0)
    SERVE = 4  # (control fd, data fd, buffer, buffer size): become the restorer's message loop; never returns
    PARK = 5  # (control fd or -1, address or 0, all): report success on the fd, close it, add one to the u32 at the
    # address and, if that makes ``all``, wake who WAITs for it; sleep for ever
    WAIT = 6  # (address, value): until the u32 at address reaches value, or a branch of the program fails
    COUNT = 7  # (address): add one to the u32 at address and wake who WAITs for it
    SIGRETURN = 8  # (frame): the way home of an injected program; never returns
    CPUID = 9  # (leaf, subleaf, out): eax, ebx, ecx, edx as 4 u32
    XGETBV = 10  # (index): the result is the register
    AMX = 11  # (): touch the tile state, so that the kernel allocates room for it
    END = 12  # (): the program, or this branch of it, is over
    LEAVE = 13  # (control fd, pid or 0): report success, close it, reap until pid has ended, exit; never returns
    CALL32 = 14  # a system call as code of 32 bits makes it (int $0x80): numbers and structures of ia32


class Mode(enum.IntEnum):
    """How the interpreter gets the value of an argument (four bits each in ``modes``)."""

    VALUE = 0  # the number itself
    RESULT = 1  # what the op with this index returned
    ADDRESS = 2  # base of the program's data + this offset
    LOAD32 = 3  # the i32 at that offset of the data, sign-extended: a descriptor that pipe2 wrote there
    LOAD64 = 4  # the u64 at that offset of the data


class Check(enum.IntEnum):
    """Which results stop the program."""

    OK = 0  # any error (-MAX_ERRNO..-1) stops it
    ANY = 1  # none does: the result is only recorded
    EXACT = 2  # anything but ``expect`` does
    OR_ERRNO = 3  # errors do, except -``expect``


@dataclass(frozen=True)
class Slot:
    """The result of an op, to be used as an argument of a later one."""

    branch: int
    index: int


@dataclass(frozen=True)
class Address:
    """An address in the program's data, known when the program is loaded."""

    offset: int


@dataclass(frozen=True)
class Load:
    """A number in the program's data, read when the op runs."""

    offset: int
    size: int  # 4 (signed) or 8


@dataclass(frozen=True)
class Buffer:
    """A piece of the program's data. As an argument it is its address."""

    offset: int
    size: int

    def at(self, offset: int) -> Address:
        """The address ``offset`` bytes into it."""
        return Address(self.offset + offset)

    def load32(self, offset: int = 0) -> Load:
        """The signed 32-bit number there, at the time the op runs."""
        return Load(self.offset + offset, 4)

    def load64(self, offset: int = 0) -> Load:
        """The 64-bit number there, at the time the op runs."""
        return Load(self.offset + offset, 8)


Arg = int | Slot | Buffer | Address | Load

OP = struct.Struct("<BBHIIIq6Qq")  # kind, check, 0, nr, modes, 0, expect, args, result


@dataclass
class Op:
    """One step: what to do, its arguments, which results are failures, and in words what it is for."""

    kind: OpKind
    label: str
    args: tuple[Arg, ...] = ()
    number: int = 0  # of the system call
    name: str = ""  # of the system call
    check: Check = Check.OK
    expect: int = 0
    child: int | None = field(default=None)  # CLONE: the branch that the child runs

"""The machine code that takes a thread out of what it was doing, and brings it home with or without a tracer.

    block all signals but the marker's
    do the work: one system call, or a program in the interpreter
    raise the marker signal              <- a live tracer stops the thread here and puts everything back itself
    did a signal arrive meanwhile?       (ppoll with no time-out and the old mask: EINTR tells that a handler ran)
    flags, stack pointer, signal mask, registers; jump home

The second half is for an orphan: a thread whose tracer was killed. It goes home by plain instructions and not by
rt_sigreturn, because that would clear the restart block of a sleep that was interrupted (the call would end with EINTR
instead of going on to its own deadline), and because it needs no copy of the vector state: nothing here or in the
interpreter uses vector registers, and so they are never touched.

The code reads everything from literals behind itself, relative to the instruction pointer. It writes to no memory,
so that a page which can only be read and executed is good enough for it, and uses no stack of the task.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee.registers import Registers

ALIGN = 64

# Numbers of the registers in instructions; user code is brought home with all of them but rsp in this order.
_NUMBERS = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7} | {
    f"r{n}": n for n in range(8, 16)
}
_HOME = [name for name in _NUMBERS if name not in ("rsp", "rax")]
_HOME_32 = [name for name in _HOME if not name[1:].isdigit()]
_PAIRS = {"no.time": "no.nanoseconds"}  # literals, and those that are to be behind them
_PAIRS_32 = _PAIRS | {"home.rax": "home.far", "interrupted.rax": "interrupted.far"}
_CMP_EINTR = b"\x48\x83\xf8\xfc"  # cmp $-EINTR,%rax
_SIG_SETMASK = 2
_SYSCALL_ARGS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


class _Assembler:
    """As much of an assembler as this takes. Literals are named, 8 bytes each, and lie behind the code."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.literals: list[str] = []
        self._fixups: list[tuple[int, str]] = []

    def set(self, register: str, value: int) -> None:
        """A constant below 2**31; the upper half becomes 0. Leaves the flags alone."""
        number = _NUMBERS[register]
        self.code += (b"\x41" if number > 7 else b"") + bytes([0xB8 | number & 7]) + struct.pack("<I", value)

    def load(self, register: str, literal: str) -> None:
        """The value of a literal."""
        self._relative(bytes([0x4C if _NUMBERS[register] > 7 else 0x48, 0x8B]), _NUMBERS[register], literal)

    def lea(self, register: str, literal: str) -> None:
        """The address of a literal."""
        self._relative(bytes([0x4C if _NUMBERS[register] > 7 else 0x48, 0x8D]), _NUMBERS[register], literal)

    def move(self, to: str, source: str) -> None:
        """From register to register."""
        t, s = _NUMBERS[to], _NUMBERS[source]
        self.code += bytes([0x48 | s >> 3 << 2 | t >> 3, 0x89, 0xC0 | (s & 7) << 3 | t & 7])

    def call(self, literal: str) -> None:
        self._relative(b"\xff", 2, literal)

    def jump(self, literal: str) -> None:
        self._relative(b"\xff", 4, literal)

    def syscall(self, name: str | None = None) -> None:
        """The call named, or the one whose number is in rax."""
        if name is not None:
            self.set("rax", NUMBERS[name])
        self.code += b"\x0f\x05"

    def _relative(self, opcode: bytes, field: int, literal: str) -> None:
        if literal not in self.literals:
            self.literals.append(literal)
        self.code += opcode + bytes([(field & 7) << 3 | 5])
        self._fixups.append((len(self.code), literal))
        self.code += bytes(4)

    def finish(self) -> bytes:
        """The code, its literals yet to be appended."""
        self.code += bytes(-len(self.code) % 8)
        for at, literal in self._fixups:
            target = len(self.code) + 8 * self.literals.index(literal)
            struct.pack_into("<i", self.code, at, target - (at + 4))
        return bytes(self.code)


@dataclass(frozen=True)
class Template:
    """Code, the same for every thread, and the names of the literals that differ."""

    code: bytes
    literals: tuple[str, ...]
    marked: int  # offset of the instruction behind the system call that raises the marker

    @property
    def size(self) -> int:
        return len(self.code) + 8 * len(self.literals)

    def fill(self, values: Mapping[str, int]) -> bytes:
        """The stub for one thread."""
        return self.code + struct.pack(f"<{len(self.literals)}Q", *(values[name] for name in self.literals))


def way_home(registers: Registers, mask: int, blocked: int, marker: int) -> dict[str, int]:
    """The literals that every stub needs: the state to go back to, the signals blocked meanwhile (``blocked``), and
    the marker signal (0: none is raised, the tracer watches for the system call)."""
    home, interrupted = registers.restarted(), registers.after_handler()
    values = {f"home.{name}": getattr(home, name) for name in (*_HOME, "rsp", "rax", "rip", "eflags")}
    values |= {"interrupted.rax": interrupted.rax, "interrupted.rip": interrupted.rip}
    # code of 32 bits is come home to with its segment
    for name in ("home", "interrupted"):
        values[f"{name}.far"] = values[f"{name}.rip"] & 0xFFFF_FFFF | registers.cs << 32
    # struct timespec of two zeros: "no.time" and the literal behind it
    return values | {"mask": mask, "blocked": blocked, "marker": marker, "no.time": 0, "no.nanoseconds": 0}


@cache
def single_call(compat: bool = False) -> Template:
    """One system call; its result is in r12 at the marker. Literals: number, rdi, rsi, rdx, r10, r8, r9. ``compat``:
    for a thread that runs code of 32 bits."""
    a = _Assembler()
    _block_signals(a)
    a.load("rax", "number")
    for register in _SYSCALL_ARGS:
        a.load(register, register)
    a.syscall()
    a.move("r12", "rax")
    return _finish(a, compat)


@cache
def whole_program(compat: bool = False) -> Template:
    """A program in the interpreter; the index of the op that failed, or -1, is in r12 at the marker. Literals: stack
    (its upper end, aligned to 16), program, run (the address of the interpreter's function)."""
    a = _Assembler()
    _block_signals(a)
    a.load("rsp", "stack")
    a.load("rdi", "program")
    a.set("rsi", 0)
    a.call("run")
    a.move("r12", "rax")
    return _finish(a, compat)


def _block_signals(a: _Assembler) -> None:
    # The tracer has set this mask already, unless it died between setting the registers and that.
    _set_mask(a, "blocked")


def _set_mask(a: _Assembler, literal: str) -> None:
    a.set("rdi", _SIG_SETMASK)
    a.lea("rsi", literal)
    a.set("rdx", 0)
    a.set("r10", 8)
    a.syscall("rt_sigprocmask")


def _finish(a: _Assembler, compat: bool) -> Template:
    # The numbers of the thread as its own namespace knows them.
    a.syscall("getpid")
    a.move("r13", "rax")
    a.syscall("gettid")
    a.move("rdi", "r13")
    a.move("rsi", "rax")
    a.load("rdx", "marker")
    a.syscall("tgkill")
    marked = len(a.code)
    # The handler of a signal that waits belongs on the thread's own stack.
    a.load("rsp", "home.rsp")
    a.set("rdi", 0)
    a.set("rsi", 0)
    a.lea("rdx", "no.time")
    a.lea("r10", "mask")
    a.set("r8", 8)
    a.syscall("ppoll")
    if compat:
        _go_home_to_ia32(a)
    else:
        a.code += _CMP_EINTR
        a.code += b"\x0f\x84"  # je
        branch = len(a.code)
        a.code += bytes(4)
        _go_home(a, "home.rax", "home.rip")
        struct.pack_into("<i", a.code, branch, len(a.code) - (branch + 4))
        _go_home(a, "interrupted.rax", "interrupted.rip")
    for first, second in (_PAIRS_32 if compat else _PAIRS).items():
        a.literals.insert(a.literals.index(first) + 1, second)
    return Template(a.finish(), tuple(a.literals), marked)


def _go_home(a: _Assembler, rax: str, rip: str) -> None:
    _dress(a, _HOME)
    a.load("rax", rax)
    a.jump(rip)


def _go_home_to_ia32(a: _Assembler) -> None:
    """Code of 32 bits has no r13; it is short, for its vDSO has little room."""
    a.lea("r13", "home.rax")
    a.code += _CMP_EINTR
    a.code += b"\x75\x07"  # jne, over the next
    a.lea("r13", "interrupted.rax")
    _dress(a, _HOME_32)
    a.code += b"\x49\x8b\x45\x00"  # mov (%r13),%rax
    a.code += b"\x41\xff\x6d\x08"  # ljmp *8(%r13): 32 bits of address, and the segment


def _dress(a: _Assembler, registers: Sequence[str]) -> None:
    # popf reads the literal; signals are still blocked, so nothing is pushed there. Nothing below changes flags:
    # mov and jmp do not, and a system call brings them back.
    a.lea("rsp", "home.eflags")
    a.code += b"\x9d"  # popfq
    a.load("rsp", "home.rsp")
    _set_mask(a, "mask")
    for register in registers:
        a.load(register, f"home.{register}")

"""A program of system calls: written by the code that knows what a process is, run by the one that does not.

    program = Program("file table of 812")
    path = program.string("/var/log/app.log")
    fd = program.syscall("openat", AT_FDCWD, path, O_WRONLY, 0, label="fd 7 (/var/log/app.log)")
    program.syscall("dup3", fd, 7, 0, label="fd 7 (/var/log/app.log)", expect=7)

An argument is a number, the result of an earlier op (`Slot`), an address in the program's data (`Buffer`,
`Buffer.at`), or a number that will stand there when the op runs (`Buffer.load32`). Nothing depends on where the
program is loaded: addresses inside data are relocations, resolved by the interpreter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from migrate.engine.kernel.syscalls import NUMBERS, NUMBERS_32
from migrate.engine.program.ops import OP, Address, Arg, Buffer, Check, Load, Mode, Op, OpKind, Slot
from migrate.errors import ProgramTooLarge

MAGIC = 0x676D
MAX_PROGRAM = 32 << 20  # bytes; the restorer's buffer
HEADER = struct.Struct(
    "<IIIIIIIiq"
)  # magic, ops, ops at, data at, relocations, relocations at, size, failed op, result
_RELOCATION = struct.Struct("<II")  # offset in the data of a u64, offset in the data whose address it gets
_OUTCOME = struct.Struct("<q")
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_RESULT, _ADDRESS, _LOAD32, _LOAD64 = map(int, (Mode.RESULT, Mode.ADDRESS, Mode.LOAD32, Mode.LOAD64))


class Program:
    """Ops and data under construction."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.branches: list[list[Op]] = [[]]
        self.content = bytearray()
        self.relocations: dict[int, int] = {}  # offset of a u64 in the data -> offset whose address it gets
        self._current = 0
        self._strings: dict[bytes, Buffer] = {}

    # Data

    def data(self, content: bytes, align: int = 8, pointers: Mapping[int, Buffer | Address] | None = None) -> Buffer:
        """Bytes that travel with the program. ``pointers``: at this offset goes the address of that buffer."""
        self.content.extend(bytes(-len(self.content) % align))
        start = len(self.content)
        self.content += content
        for offset, target in (pointers or {}).items():
            self.relocations[start + offset] = target.offset
        return Buffer(start, len(content))

    def space(self, size: int, align: int = 8) -> Buffer:
        """Room of ``size`` zero bytes, for a system call to write to."""
        return self.data(bytes(size), align)

    def string(self, text: str | bytes) -> Buffer:
        """A NUL-terminated string; the same text is kept once."""
        raw = (text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text) + b"\0"
        if raw not in self._strings:
            self._strings[raw] = self.data(raw, align=1)
        return self._strings[raw]

    # Ops

    def syscall(
        self,
        name: str,
        *args: Arg,
        label: str,
        expect: int | None = None,
        errno_ok: int | None = None,
        ignore: bool = False,
    ) -> Slot:
        """A system call. It fails on any error; or unless it returns ``expect``; or but for the errno ``errno_ok``;
        or, with ``ignore``, never (its result is recorded all the same)."""
        check, value = Check.OK, 0
        if ignore:
            check = Check.ANY
        elif errno_ok is not None:
            check, value = Check.OR_ERRNO, errno_ok
        elif expect is not None:
            check, value = Check.EXACT, expect
        op = Op(OpKind.SYSCALL, label, args, NUMBERS[name], name, check, value)
        return self._append(op)

    def call32(self, name: str, *args: Arg, label: str) -> Slot:
        """A system call as code of 32 bits makes it, with its structures, which must lie below 4 GiB. It fails on any
        error."""
        return self._append(Op(OpKind.CALL32, label, args, NUMBERS_32[name], name))

    def op(self, kind: OpKind, *args: Arg, label: str) -> Slot:
        """An op that is not a system call."""
        return self._append(Op(kind, label, args))

    @contextmanager
    def branch(self) -> Iterator[int]:
        """Ops written inside belong to a new branch, run by the child of the `clone` that is given its number."""
        outer, self._current = self._current, len(self.branches)
        self.branches.append([])
        try:
            yield self._current
            if not self.branches[self._current] or self.branches[self._current][-1].kind not in _LAST:
                self.op(OpKind.END, label="end of the branch")
        finally:
            self._current = outer

    def clone(self, clone_args: Buffer, branch: int, label: str, code: Arg = 0) -> Slot:
        """clone3(2); the child goes on with ``branch``, in the interpreter at ``code`` (0: this one)."""
        return self._append(Op(OpKind.CLONE, label, (clone_args, clone_args.size, 0, code), child=branch))

    def _append(self, op: Op) -> Slot:
        branch = self.branches[self._current]
        branch.append(op)
        return Slot(self._current, len(branch) - 1)

    def __len__(self) -> int:
        return sum(map(len, self.branches))

    # Linking

    def link(self) -> Linked:
        """The bytes that the interpreter runs."""
        branches = [list(ops) for ops in self.branches]
        if not branches[0] or branches[0][-1].kind not in _LAST:
            branches[0].append(Op(OpKind.END, "end of the program"))
        starts, total = [], 0
        for ops in branches:
            starts.append(total)
            total += len(ops)
        out = bytearray(HEADER.size)
        flat: list[Op] = []
        for ops in branches:
            for op in ops:
                out += self._encode(op, starts)
                flat.append(op)
        relocations_at = len(out)
        for offset, target in sorted(self.relocations.items()):
            out += _RELOCATION.pack(offset, target)
        out += bytes(-len(out) % 64)
        data_at = len(out)
        out += self.content
        out += bytes(-len(out) % 64)  # another one may come right behind it
        if len(out) > MAX_PROGRAM:
            raise ProgramTooLarge(self.title, len(out), MAX_PROGRAM)
        HEADER.pack_into(
            out, 0, MAGIC, total, HEADER.size, data_at, len(self.relocations), relocations_at, len(out), -1, 0
        )
        return Linked(self.title, bytes(out), tuple(flat), tuple(starts), data_at)

    @staticmethod
    def _encode(op: Op, starts: list[int]) -> bytes:
        values, modes, shift = [0, 0, 0, 0, 0, 0], 0, 0
        for i, arg in enumerate(op.args):
            # in the frozen window a thousand of these take a millisecond less than isinstance
            if type(arg) is int:
                values[i] = arg & _U64
            elif type(arg) is Buffer or type(arg) is Address:
                values[i] = arg.offset
                modes |= _ADDRESS << shift
            elif isinstance(arg, Slot):
                values[i] = starts[arg.branch] + arg.index
                modes |= _RESULT << shift
            elif isinstance(arg, Load):
                values[i] = arg.offset
                modes |= (_LOAD32 if arg.size == 4 else _LOAD64) << shift
            else:
                assert isinstance(arg, int)  # an IntEnum
                values[i] = int(arg) & _U64
            shift += 4
        if op.child is not None:
            values[2] = starts[op.child]
        return OP.pack(op.kind, op.check, 0, op.number, modes, 0, op.expect, *values, 0)


@dataclass(frozen=True)
class Linked:
    """A program ready to run. ``image`` is position-independent."""

    title: str
    image: bytes
    ops: tuple[Op, ...]
    starts: tuple[int, ...]
    data_at: int

    def results(self, image: bytes) -> Results:
        """What came back: the image after the run."""
        return Results(self, image)


class Results:
    """The image of a program that has run: its results and what the system calls wrote into its data."""

    def __init__(self, program: Linked, image: bytes) -> None:
        self.program, self.image = program, image

    @property
    def failed(self) -> tuple[Op, int] | None:
        """The op that stopped the program and what it returned, or None."""
        header = HEADER.unpack_from(self.image)
        return None if header[7] < 0 else (self.program.ops[header[7]], header[8])

    def of(self, slot: Slot) -> int:
        """What the op returned."""
        index = self.program.starts[slot.branch] + slot.index
        return int(_OUTCOME.unpack_from(self.image, HEADER.size + (index + 1) * OP.size - 8)[0])

    def bytes(self, buffer: Buffer) -> bytes:
        """What stands in the buffer."""
        start = self.program.data_at + buffer.offset
        return self.image[start : start + buffer.size]


_LAST = (OpKind.SERVE, OpKind.PARK, OpKind.END, OpKind.SIGRETURN, OpKind.LEAVE)

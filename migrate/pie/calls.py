"""System calls made in one go: by the interpreter, in this very process.

A ptrace request takes the kernel half a microsecond and Python four. Of a process with many threads hundreds are due
while it stands still, so they are laid out as ops and made without a line of Python in between.
"""

from __future__ import annotations

import struct
from array import array

from migrate.engine.program.ops import OP, Check, OpKind
from migrate.engine.program.program import HEADER, MAGIC
from migrate.pie.local import interpret

_WORDS = OP.size // 8
_KIND = struct.Struct("<BBHI")  # kind, check, 0, number: the first word of an op
_END = (int(OpKind.END), *[0] * (_WORDS - 1))


class Calls:
    """A list of system calls, which are all made, whatever each of them returns."""

    def __init__(self) -> None:
        self._words = array("Q")
        self._first: dict[int, int] = {}  # number of a call -> the first word of its op

    def add(self, number: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0) -> None:
        """One more. Arguments are not negative; pointers are to memory of ours that lives until `make`."""
        first = self._first.get(number)
        if first is None:
            first = int.from_bytes(_KIND.pack(OpKind.SYSCALL, Check.ANY, 0, number), "little")
            self._first[number] = first
        self._words.extend((first, 0, 0, a0, a1, a2, a3, 0, 0, 0))

    def __len__(self) -> int:
        return len(self._words) // _WORDS

    def make(self) -> list[int]:
        """Make them all, in order; what each returned, -errno included."""
        count = len(self)
        end = HEADER.size + (count + 1) * OP.size
        image = bytearray(HEADER.pack(MAGIC, count + 1, HEADER.size, end, 0, end, end, -1, 0))
        image += memoryview(self._words).cast("B")
        image += struct.pack(f"<{_WORDS}Q", *_END)
        interpret(image)
        results = memoryview(image)[HEADER.size : HEADER.size + count * OP.size].cast("q")
        return results[_WORDS - 1 :: _WORDS].tolist()

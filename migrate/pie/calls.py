"""System calls made in one go: by the interpreter, in this very process.

A ptrace request takes the kernel half a microsecond and Python four. Of a process with many threads hundreds are due
while it stands still, so they are laid out as ops and made without a line of Python in between.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import cache

from migrate.engine.program.ops import OP, Check, OpKind
from migrate.engine.program.program import HEADER, MAGIC
from migrate.pie.local import interpret

_WORDS = OP.size // 8
_ARGUMENTS = 3  # the word that the first argument is
_KIND = struct.Struct("<BBHI")  # kind, check, 0, number: the first word of an op
_END = (int(OpKind.END), *[0] * (_WORDS - 1))


@cache
def _first(number: int) -> int:
    """The first word of the op that makes this call."""
    return int.from_bytes(_KIND.pack(OpKind.SYSCALL, Check.ANY, 0, number), "little")


class Calls:
    """A list of system calls, which are all made, whatever each of them returns."""

    def __init__(self) -> None:
        self._words = array("Q")

    def add(self, number: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0) -> None:
        """One more. Arguments are not negative; pointers are to memory of ours that lives until `make`."""
        self._words.extend((_first(number), 0, 0, a0, a1, a2, a3, 0, 0, 0))

    def add_table(self, rows: int, *steps: Sequence[int | Sequence[int]]) -> None:
        """``rows`` times the same few calls, row by row. Each of ``steps`` is one of them: its number and up to four
        arguments, which are numbers, or ``rows`` numbers where they differ."""
        stride = _WORDS * len(steps)
        words = array("Q", bytes(8 * stride * rows))
        for index, (number, *arguments) in enumerate(steps):
            assert isinstance(number, int)
            for word, value in ((0, _first(number)), *enumerate(arguments, _ARGUMENTS)):
                column = array("Q", (value,)) * rows if isinstance(value, int) else array("Q", value)
                words[index * _WORDS + word :: stride] = column
        self._words.extend(words)

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

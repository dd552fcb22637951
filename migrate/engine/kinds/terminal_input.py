"""What waits in the line discipline of a terminal (termios(3), N_TTY), and how it gets there again. Pure.

Nothing reads it without taking it, and nothing but typing puts it back: TIOCSTI, for that is at its place when the call
returns, while what is written to the master is looked at later, by a worker of the kernel's and by the settings of
then. So it is typed under settings that do nothing to it. Where the end of a line is, is remembered by the line
discipline for as long as it is canonical; a switch of ICANON forgets it (n_tty_set_termios(), drivers/tty/n_tty.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# asm-generic/termbits.h
IXON, ICANON, IEXTEN, EXTPROC = 0x400, 0x2, 0x8000, 0x10000
VTIME, VEOF, VMIN, VSTART, VSTOP, VEOL, VLNEXT, VEOL2 = 5, 4, 6, 8, 9, 11, 15, 16
_TERMIOS2 = struct.Struct("<4IB19s2I")  # iflag, oflag, cflag, lflag, line, cc, speeds
TERMIOS_SIZE = _TERMIOS2.size
END_OF_FILE, START, STOP, LITERAL_NEXT = 0x04, 0x11, 0x13, 0x16
ROOM = 4095  # bytes that a line discipline holds: N_TTY_BUF_SIZE less one
NEWLINE = 0x0A


@dataclass(frozen=True)
class Line:
    """One that can be read. ``cut``: it ends because somebody typed an end of file, which is not in it; else its last
    byte is what ends it."""

    content: bytes
    cut: bool


@dataclass(frozen=True)
class Waiting:
    """``rest``: of a canonical terminal a line that has no end yet, of another one all of it; ``unseen``: what was
    written when there was no more room, so that the line discipline has not looked at it yet."""

    lines: tuple[Line, ...] = ()
    rest: bytes = b""
    unseen: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.lines or self.rest or self.unseen)


def canonical(termios: bytes) -> bool:
    """Whether it is read line by line. ``termios``: struct termios2."""
    return bool(_TERMIOS2.unpack(termios)[3] & ICANON)


def external(termios: bytes) -> bool:
    """Whether somebody else edits its lines (EXTPROC)."""
    return bool(_TERMIOS2.unpack(termios)[3] & EXTPROC)


def literal(termios: bytes, lines: bool, eol: int = 0, typing: bool = False, flow: bool = False) -> bytes:
    """Settings under which nothing happens to what comes in, nor to what goes out. ``lines``: canonical, where a
    newline ends a line all the same; ``typing``: and so do ``eol`` and an end of file, but behind LITERAL_NEXT;
    ``flow``: STOP stops the output."""
    _, _, cflag, _, discipline, _, *speeds = _TERMIOS2.unpack(termios)
    characters = bytearray(19)  # 0: none (_POSIX_VDISABLE); VMIN and VTIME of 0: a read does not wait
    lflag = ICANON if lines else 0
    if lines and typing:
        lflag |= IEXTEN
        characters[VEOF], characters[VEOL], characters[VLNEXT] = END_OF_FILE, eol, LITERAL_NEXT
    if flow:
        characters[VSTART], characters[VSTOP] = START, STOP
    return _TERMIOS2.pack(IXON if flow else 0, 0, cflag, lflag, discipline, bytes(characters), *speeds)


def found(lines: Sequence[bytes], rest: bytes, termios: bytes) -> Waiting:
    """Out of what was read under `literal` settings, line by line and then what was left. ``termios``: those before."""
    lflag, characters = _TERMIOS2.unpack(termios)[3], _TERMIOS2.unpack(termios)[5]
    ends = {NEWLINE, characters[VEOL] or NEWLINE}
    if lflag & IEXTEN and characters[VEOL2]:
        ends.add(characters[VEOL2])
    whole: list[Line] = []
    used = 0
    for index, content in enumerate(lines):
        line = Line(content, not content or content[-1] not in ends)
        if used + len(content) + line.cut > ROOM:
            return Waiting(tuple(whole), *_seen(b"".join(lines[index:]) + rest, ROOM - used))
        whole.append(line)
        used += len(content) + line.cut
    return Waiting(tuple(whole), *_seen(rest, ROOM - used))


def _seen(content: bytes, room: int) -> tuple[bytes, bytes]:
    return content[:room], content[room:]


def typed(waiting: Waiting, termios: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Settings, and what is to be typed under them, so that it waits again: all but what is ``unseen``. ``termios``:
    those which are set afterwards."""
    if not canonical(termios):
        if waiting.rest:
            yield literal(termios, lines=False), waiting.rest
        return
    keys, current = bytearray(), NEWLINE
    for line in waiting.lines:
        end = current if line.cut else line.content[-1]
        if end not in (NEWLINE, current):
            if keys:
                yield _typing(termios, current), bytes(keys)
                keys.clear()
            current = end
        keys += _quoted(line.content if line.cut else line.content[:-1], current)
        keys.append(END_OF_FILE if line.cut else end)
    keys += _quoted(waiting.rest, current)
    if keys:
        yield _typing(termios, current), bytes(keys)


def _typing(termios: bytes, end: int) -> bytes:
    return literal(termios, lines=True, eol=0 if end == NEWLINE else end, typing=True)


def _quoted(content: bytes, end: int) -> bytes:
    quoted = bytearray()
    for byte in content:
        if byte in (NEWLINE, END_OF_FILE, LITERAL_NEXT, end):
            quoted.append(LITERAL_NEXT)
        quoted.append(byte)
    return bytes(quoted)

"""What waits in a terminal: how it is told from what was read, and typed again. Tried on terminals of our own."""

from __future__ import annotations

import fcntl
import os
import pty
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.engine.kinds.terminal import TCGETS2, TCSETS2
from migrate.engine.kinds.terminal_input import (
    END_OF_FILE,
    LITERAL_NEXT,
    ROOM,
    TERMIOS_SIZE,
    Line,
    Waiting,
    canonical,
    external,
    found,
    literal,
    typed,
)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Master and slave."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def settings_of(fd: int) -> bytes:
    room = bytearray(TERMIOS_SIZE)
    fcntl.ioctl(fd, TCGETS2, room)
    return bytes(room)


@pytest.fixture
def cooked(terminal: tuple[int, int]) -> bytes:
    """As the kernel sets a new one: ^D ends a file, no VEOL."""
    return settings_of(terminal[1])


def test_lines_are_told_apart_by_how_they_end(cooked: bytes) -> None:
    assert canonical(cooked) and not external(cooked)
    waiting = found([b"one\n", b"two", b""], b"rest", cooked)
    assert waiting == Waiting((Line(b"one\n", False), Line(b"two", True), Line(b"", True)), b"rest")
    assert waiting and not Waiting()


def test_what_was_written_to_a_full_terminal_has_not_been_seen(cooked: bytes) -> None:
    raw = literal(cooked, lines=False)
    assert not canonical(raw)
    content = bytes(range(256)) * 20
    assert found([], content, raw) == Waiting((), content[:ROOM], content[ROOM:])
    lines = [b"x" * 99 + b"\n"] * 45
    waiting = found(lines, b"end", cooked)
    assert waiting.lines == (Line(lines[0], False),) * 40
    assert (waiting.rest, waiting.unseen) == (b"x" * 95, b"xxxx\n" + b"".join(lines[41:]) + b"end")


def test_an_end_of_file_takes_room(cooked: bytes) -> None:
    waiting = found([b""] * (ROOM + 1), b"", cooked)
    assert waiting == Waiting((Line(b"", True),) * ROOM)


def test_what_is_special_is_quoted(cooked: bytes) -> None:
    waiting = Waiting((Line(b"a\nb\x04\x16\n", False), Line(b"cut", True)), b"\n")
    ((under, keys),) = typed(waiting, cooked)
    assert canonical(under)
    quote = bytes([LITERAL_NEXT])
    assert keys == b"a" + quote + b"\nb" + quote + b"\x04" + quote + b"\x16\ncut" + bytes([END_OF_FILE]) + quote + b"\n"
    assert list(typed(Waiting((), b"\x03\n"), literal(cooked, lines=False))) == [
        (literal(cooked, lines=False), b"\x03\n")
    ]
    assert not list(typed(Waiting(), cooked))


def _type(slave: int, waiting: Waiting, last: bytes) -> None:
    for under, keys in typed(waiting, last):
        fcntl.ioctl(slave, TCSETS2, under)
        for key in keys:
            fcntl.ioctl(slave, termios.TIOCSTI, bytes([key]))
    fcntl.ioctl(slave, TCSETS2, last)


LINES = st.lists(st.builds(
    lambda content, cut: Line(content if cut else content + b"\n", cut),
    st.binary(max_size=40).filter(lambda content: not content.endswith((b"\n", b";"))), st.booleans(),
), max_size=12)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(LINES, st.binary(max_size=60), st.booleans())
def test_what_is_typed_is_what_is_read(lines: list[Line], rest: bytes, other_end: bool) -> None:
    """By the line discipline itself, whatever the bytes are; ``other_end``: the terminal has a VEOL, and a line by
    it."""
    master, slave = pty.openpty()
    try:
        os.set_blocking(slave, False)
        attributes = termios.tcgetattr(slave)
        if other_end:
            attributes[6][termios.VEOL] = b";"
            lines = [*lines, Line(b"until;", False), Line(b"more\n", False)]
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        last = settings_of(slave)
        _type(slave, Waiting(tuple(lines), rest), last)
        assert settings_of(slave) == last
        fcntl.ioctl(slave, TCSETS2, literal(last, lines=True))
        read = [os.read(slave, 5000) for _ in lines]
        fcntl.ioctl(slave, TCSETS2, literal(last, lines=False))
        assert found(read, os.read(slave, 5000), last) == Waiting(tuple(lines), rest)
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):  # and nothing of it was echoed
            os.read(master, 1)
    finally:
        os.close(master)
        os.close(slave)

"""Asks for a passphrase or a password, when there is a terminal to ask on."""

from __future__ import annotations

import getpass
import os
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from migrate.progress import Display


def prompt(display: Display) -> Callable[[str], Awaitable[str | None]] | None:
    """A function that asks, without the display in the way; None without a terminal (ssh asks /dev/tty too)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return None

    async def ask(question: str) -> str | None:
        display.suspend()
        try:
            with _as_it_was():
                return await trio.to_thread.run_sync(_ask, question, abandon_on_cancel=True)
        finally:
            display.resume()

    return ask


@contextmanager
def _as_it_was() -> Iterator[None]:
    """The terminal shows what is typed after this as it did before, also when the thread that asks was given up."""
    tty = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        before = termios.tcgetattr(tty)
        try:
            yield
        finally:
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(tty, termios.TCSANOW, before)
    finally:
        os.close(tty)


def _ask(question: str) -> str | None:
    try:
        return getpass.getpass(question)
    except EOFError:
        return None

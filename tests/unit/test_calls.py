"""System calls made in one go by the interpreter in this process."""

from __future__ import annotations

import errno
import os

from migrate.engine.kernel.buffers import address_of
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.pie.calls import Calls


def test_all_are_made_in_order_and_errors_stop_nothing() -> None:
    reading, writing = os.pipe()
    out, back = bytearray(b"first second"), bytearray(12)
    try:
        calls = Calls()
        calls.add(NUMBERS["getpid"])
        calls.add(NUMBERS["close"], 1 << 20)
        calls.add(NUMBERS["write"], writing, address_of(out), len(out))
        calls.add(NUMBERS["read"], reading, address_of(back), len(back))
        assert len(calls) == 4
        assert calls.make() == [os.getpid(), -errno.EBADF, 12, 12]
        assert back == out
    finally:
        os.close(reading)
        os.close(writing)


def test_none_at_all() -> None:
    assert Calls().make() == []


def test_a_thousand_and_again() -> None:
    calls = Calls()
    for number in range(1000):
        calls.add(NUMBERS["close"], (1 << 20) + number)
    assert calls.make() == calls.make() == [-errno.EBADF] * 1000


def test_tables() -> None:
    """Row by row, among others."""
    reading, writing = os.pipe()
    out = bytearray(b"abcdef")
    base = address_of(out)
    try:
        calls = Calls()
        calls.add(NUMBERS["write"], writing, base + 5, 1)
        calls.add_table(
            2, (NUMBERS["write"], writing, range(base, base + 4, 2), [1, 2]), (NUMBERS["close"], [1 << 20, 1 << 21])
        )
        calls.add_table(0, (NUMBERS["close"], reading))
        calls.add(NUMBERS["getpid"])
        assert len(calls) == 6
        assert calls.make() == [1, 1, -errno.EBADF, 2, -errno.EBADF, os.getpid()]
        assert os.read(reading, 10) == b"facd"
    finally:
        os.close(reading)
        os.close(writing)

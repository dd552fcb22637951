"""Runs a program in this very process: to learn what the CPU and the kernel are like, and for tests."""

from __future__ import annotations

import mmap
from functools import cache
from typing import Any

from cffi import FFI

from migrate.engine.program import Linked, Results
from migrate.pie import RUN, blob

_ffi = FFI()
_kept: list[Any] = []


@cache
def _start() -> int:
    """Where the blob is. Never unmapped: a branch may still be on its way out of it."""
    code = mmap.mmap(-1, len(blob()), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(blob())
    _kept.append(code)
    return int(_ffi.cast("uintptr_t", _ffi.from_buffer(code)))


def entry(offset: int) -> int:
    """The address of one of its entry points (see `migrate.pie`) in this process."""
    return _start() + offset


@cache
def _interpreter() -> Any:
    """`run` of the blob as a C function."""
    return _ffi.cast("int (*)(char *, unsigned)", entry(RUN))


def interpret(image: bytearray) -> None:
    """Run a program without branches where it is; its results are in the image then."""
    _interpreter()(_ffi.from_buffer("char[]", image), 0)


def run(program: Linked) -> Results:
    """Run it here and return what came of it; a program that never ends (PARK, SERVE) does not return."""
    image = _ffi.new("char[]", program.image)
    if len(program.starts) > 1:
        _kept.append(image)  # its threads run on for a moment
    _interpreter()(image, 0)
    return program.results(bytes(_ffi.buffer(image, len(program.image))))

"""Runs a program in this very process: to learn what the CPU and the kernel are like, and for tests."""

from __future__ import annotations

import mmap

from cffi import FFI

from migrate.engine.program import Linked, Results
from migrate.pie import RUN, blob

_ffi = FFI()


def run(program: Linked) -> Results:
    """Run it here and return what came of it; a program that never ends (PARK, SERVE) does not return."""
    with mmap.mmap(-1, len(blob()), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(blob())
        image = _ffi.new("char[]", program.image)
        start = int(_ffi.cast("uintptr_t", _ffi.from_buffer(code)))
        function = _ffi.cast("int (*)(char *, unsigned)", start + RUN)
        function(image, 0)
        results = program.results(bytes(_ffi.buffer(image, len(program.image))))
        del function
    return results

"""CRC-32C of memory, as quickly as the CPU computes it: four times as fast as what the standard library has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from cffi import FFI

from migrate.pie import CRC32C
from migrate.pie.local import entry

_ffi = FFI()


def crc32c(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """``before``: of what comes before it. Lets other threads run meanwhile."""
    if not len(data):
        return before
    return int(_function()(before, _ffi.from_buffer("char[]", data), len(data), has_instruction()))


@cache
def _function() -> Any:
    return _ffi.cast("uint32_t (*)(uint32_t, char *, size_t, uint32_t)", entry(CRC32C))


@cache
def has_instruction() -> bool:
    """Whether the CPU computes it (SSE4.2)."""
    return "sse4_2" in Path("/proc/cpuinfo").read_text().split()

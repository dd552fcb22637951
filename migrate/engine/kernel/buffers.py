"""Where a Python buffer lies, for structures that hold addresses."""

from __future__ import annotations

from array import array
from typing import Any

from cffi import FFI

_ffi = FFI()


def address_of(buffer: bytearray | memoryview | array[int]) -> int:
    """The address of its first byte: right for as long as the buffer lives and is not resized."""
    view: Any = _ffi.from_buffer(buffer)
    return int(_ffi.cast("uintptr_t", view))

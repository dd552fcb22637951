"""An ELF executable around a flat blob of code, so that execve(2) takes it (elf(5)).

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import struct

BASE = 0x2_0000_0000  # outside of where the kernel puts anything of a static executable
_PAGE = 0x1000
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551
_R, _W, _X = 4, 2, 1


def elf(blob: bytes, base: int = BASE) -> bytes:
    """A static x86-64 executable: ``blob`` at ``base``, all rights on it, entered at its first byte."""
    ident = b"\x7fELF" + bytes((2, 1, 1))  # 64 bits, little-endian, version 1
    header = _EHDR.pack(
        ident, 2, 62, 1, base, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 2, 0, 0, 0  # ET_EXEC, EM_X86_64
    )
    load = _PHDR.pack(_PT_LOAD, _R | _W | _X, _PAGE, base, base, len(blob), len(blob), _PAGE)
    # Without it the kernel takes the stack to be executable, and every readable mapping with it (READ_IMPLIES_EXEC).
    stack = _PHDR.pack(_PT_GNU_STACK, _R | _W, 0, 0, 0, 0, 0, 16)
    return (header + load + stack).ljust(_PAGE, b"\0") + blob

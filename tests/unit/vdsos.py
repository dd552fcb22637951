"""The vDSOs of five kernels: tests/data/vdso holds the images as the kernels have them, before they are patched to a
CPU. 5.10, 6.1, 6.12 and 7.2 are Debian's (facts in the README there), 6.18 is of a Firecracker guest."""

from __future__ import annotations

import lzma
from dataclasses import replace
from functools import cache
from pathlib import Path

from migrate.engine.vdso import VDSO, Area

KERNELS = ("5.10", "6.1", "6.12", "6.18", "7.2")
_DATA = Path(__file__).parent.parent / "data" / "vdso"
_LAYOUTS = {  # bytes of vvar, vvar_vclock and vdso
    "5.10": (0x4000, 0, 0x2000),
    "6.1": (0x4000, 0, 0x2000),
    "6.12": (0x4000, 0, 0x2000),
    "6.18": (0x4000, 0x2000, 0x2000),
    "7.2": (0x4000, 0x2000, 0x2000),
}
BASE = 0x7FFF_F7F0_0000


IA32_KERNELS = ("5.10", "6.1", "6.12", "7.2")


def ia32(kernel: str, base: int = 0xF7F0_0000) -> VDSO:
    """Of a process of 32 bits on that kernel."""
    content = lzma.decompress((_DATA / f"ia32-{kernel}.so.xz").read_bytes())
    size = -(-len(content) // 4096) * 4096
    *data, code = areas(kernel, base)
    found = *data, replace(code, end=code.start + size)
    return VDSO.read(found, content.ljust(size, b"\0"))


@cache
def image(kernel: str) -> bytes:
    """The ELF file."""
    return lzma.decompress((_DATA / f"{kernel}.so.xz").read_bytes())


def areas(kernel: str, base: int = BASE) -> tuple[Area, ...]:
    """As that kernel maps them, from ``base`` on."""
    found, at = [], base
    for name, size in zip(("[vvar]", "[vvar_vclock]", "[vdso]"), _LAYOUTS[kernel], strict=True):
        if size:
            found.append(Area(name, at, at + size))
            at += size
    return tuple(found)


def vdso(kernel: str, base: int = BASE) -> VDSO:
    """Of a process on that kernel."""
    return VDSO.read(areas(kernel, base), image(kernel).ljust(0x2000, b"\0"))

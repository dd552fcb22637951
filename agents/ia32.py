"""Programs of 32 bits on this host: whether its kernel runs them, and the vDSO that it gives them.

That of another process of 32 bits cannot be read here, where all have 64; so one is started for a moment.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import os
import signal
import struct
from functools import lru_cache

from agents import libc

_BASE = 0x08048000
_CODE = bytes.fromhex(
    "6a0089e1"  # push $0; mov %esp,%ecx
    "b804000000bb01000000ba01000000cd80"  # write(1, a byte, 1)
    "b81d000000cd80ebf7"  # pause() for ever
)
_HEADERS = 52 + 32  # struct Elf32_Ehdr, Elf32_Phdr (elf(5))
AREAS = ("[vvar]", "[vvar_vclock]", "[vdso]")


def program() -> bytes:
    """An executable that says a byte, and sleeps."""
    entry, size = _BASE + _HEADERS, _HEADERS + len(_CODE)
    ident = b"\x7fELF\1\1\1".ljust(16, b"\0")
    head = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    return head + struct.pack("<8I", 1, 0, _BASE, _BASE, size, size, 5, 4096) + _CODE


@lru_cache(None)
def look() -> tuple[str, bytes] | None:
    """The lines of maps about the vDSO of such a process, and what is mapped as [vdso]; None: there are none such."""
    said, says = os.pipe()
    fd = libc.executable_memfd("migrate-ia32")
    try:
        os.write(fd, program())
        pid = os.fork()
        if pid == 0:
            try:
                libc.set_pdeathsig(signal.SIGKILL)
                os.dup2(says, 1)
                os.execve(fd, ["migrate-ia32"], {})
            finally:
                os._exit(127)
        os.close(says)
        says = -1
        try:
            if not os.read(said, 1):
                return None
            return _read(pid)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        for each in (said, says, fd):
            if each >= 0:
                os.close(each)


def _read(pid: int) -> tuple[str, bytes]:
    with open(f"/proc/{pid}/maps") as maps:
        lines = [line for line in maps if line.rstrip().endswith(AREAS)]
    content = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in lines:
            if line.rstrip().endswith(AREAS[-1]):
                start, end = (int(number, 16) for number in line.split()[0].split("-"))
                content = os.pread(memory.fileno(), end - start, start)
    return "".join(lines), content

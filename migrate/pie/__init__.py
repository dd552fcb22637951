"""The freestanding C: interpreter and restorer, as one position-independent blob with fixed entry points."""

from __future__ import annotations

from functools import cache
from pathlib import Path

START = 0  # the restorer's ELF entry
ENTER = 8  # enter(program, op): noreturn
RUN = 16  # run(program, op) -> index of the failed op or -1
BARE_SYSCALL = 24  # syscall; int3
CRC32C = 32  # crc32c(before, data, bytes, the CPU has the instruction)


@cache
def blob() -> bytes:
    """The code."""
    return (Path(__file__).parent / "blob.bin").read_bytes()

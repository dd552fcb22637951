"""For what machine a program is (elf(5))."""

from __future__ import annotations

import os

IA32, X86_64 = (1, 3), (2, 62)  # EI_CLASS and e_machine: ELFCLASS32 and EM_386, ELFCLASS64 and EM_X86_64


def machine(head: bytes) -> tuple[int, int]:
    """By the first 20 bytes of an ELF file."""
    return head[4], int.from_bytes(head[18:20], "little")


def is_ia32(pid: int) -> bool:
    """Whether that is what a process runs. OSError: it has ended, or has no executable."""
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(fd, 20, 0)
    finally:
        os.close(fd)
    return head[:4] == b"\x7fELF" and machine(head) == IA32

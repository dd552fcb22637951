"""Where threads have registered their struct rseq, on kernels that cannot be asked (before Linux 5.13).

The GNU C Library registers one for each thread, at a fixed distance from its thread pointer, and tells where: the
symbols __rseq_offset and __rseq_size (2.35). What somebody else has registered nobody knows but the kernel; of that it
can only be found out that it is there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.hash import GNUHashSection
from elftools.elf.sections import SymbolTableSection

from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.memory import Memory, RemoteAddress

_SIZE, _SIGNATURE = 32, 0x53053053  # what glibc registers on x86 (sysdeps/unix/sysv/linux/x86/bits/rseq.h)
_CPU_ID_AT = 4  # in struct rseq; negative while it is not registered (RSEQ_CPU_ID_UNINITIALIZED, linux/rseq.h)
_NAMES = ("__rseq_offset", "__rseq_size")
_NOT_OURS = 1 << 63  # an aligned address of the kernel's


class Registrations:
    """Of the threads of one process, which must be stopped. ``guessed``: the kernel could not be asked, so that
    there may be others."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.guessed = False
        self._offset: int | None = None
        self._looked = False

    def find(self, thread_pointer: int) -> ptrace.RseqConfiguration | None:
        """That of the thread with this thread pointer; None where the C library has registered none."""
        self.guessed = True
        if not self._looked:
            self._offset, self._looked = _glibc_offset(self._memory), True
        if self._offset is None or not thread_pointer:
            return None
        address = thread_pointer + self._offset
        try:
            raw = self._memory.read(RemoteAddress(address + _CPU_ID_AT), 4)
        except OSError:  # a thread that has no such library, or is not so far yet
            return None
        if int.from_bytes(raw, "little", signed=True) < 0:
            return None
        return ptrace.RseqConfiguration(address, _SIZE, _SIGNATURE, 0)


def registered(call: Callable[..., int]) -> bool:
    """Whether the thread that makes ``call`` (of a system call: number and arguments) has registered any.

    An address that cannot be is another one than what is registered, which is EINVAL, and else is EFAULT
    (sys_rseq in kernel/rseq.c).
    """
    return call(NUMBERS["rseq"], _NOT_OURS, _SIZE, 0, _SIGNATURE) == -errno.EINVAL


def _glibc_offset(memory: Memory) -> int | None:
    """What the task's __rseq_offset holds; None: no library that has it, or it has not registered anything."""
    listed = Path(f"/proc/{memory.pid}/maps").read_bytes().decode("utf-8", "surrogateescape")
    files = [mapping for mapping in maps(listed) if mapping.file and not mapping.offset]
    # the symbols are the dynamic linker's, or those of a program without one
    for mapping in sorted(files, key=lambda mapping: "/ld-" not in mapping.path):
        found = _symbols(memory.pid, mapping)
        if found is not None:
            offset, size, word = found
            if not int.from_bytes(memory.read(RemoteAddress(size), 4), "little"):
                return None
            return int.from_bytes(memory.read(RemoteAddress(offset), word), "little", signed=True)
    return None


def _symbols(pid: int, mapping: Mapping) -> list[int] | None:
    """The addresses of `_NAMES` in the task, if this is the beginning of an ELF file that has them; and the bytes of
    a word of it."""
    try:
        with open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", "rb") as file, ELFFile(file) as elf:
            base = mapping.start - min(int(each["p_vaddr"]) for each in elf.iter_segments("PT_LOAD"))
            found, word = [_value(elf, name) for name in _NAMES], elf.elfclass // 8
    except (OSError, ELFError):
        return None  # nothing to be read, or not an ELF file
    return [*(base + value for value in found if value is not None), word] if None not in found else None


def _value(elf: ELFFile, name: str) -> int | None:
    symbol = None
    hashes, symbols = elf.get_section_by_name(".gnu.hash"), elf.get_section_by_name(".symtab")
    if isinstance(hashes, GNUHashSection):
        symbol = hashes.get_symbol(name)
    elif isinstance(symbols, SymbolTableSection):  # a static program
        symbol = next(iter(symbols.get_symbol_by_name(name) or ()), None)
    return int(symbol["st_value"]) if symbol is not None else None

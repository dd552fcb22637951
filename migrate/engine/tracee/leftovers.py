"""What a source agent that was killed left in a process: the area of its parasite. Found again, and taken out."""

from __future__ import annotations

from pathlib import Path

from migrate.engine.kernel.maps import PAGE, maps
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee.injection import HEADER_SIZE, size_of_area
from migrate.engine.tracee.memory import Memory, RemoteAddress
from migrate.engine.tracee.tree import Tracee


def leftovers(pid: int) -> list[tuple[RemoteAddress, int]]:
    """Address and size of each area. Several, side by side, look like one mapping. OSError when the process is gone."""
    found = []
    memory = Memory(pid)
    for mapping in maps(Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")):
        if mapping.perms != "rwxp" or mapping.path:
            continue
        pages = [RemoteAddress(address) for address in range(mapping.start, mapping.end, PAGE)]
        for address, start in zip(pages, memory.read_many([(page, HEADER_SIZE) for page in pages]), strict=True):
            size = size_of_area(start)
            if size and address + size <= mapping.end:
                found.append((address, size))
    return found


def cure(tracee: Tracee) -> int:
    """Unmap them from a stopped process; how many bytes. One with a thread that is still on its way home stays: let it
    run for a millisecond and try again."""
    freed = 0
    pointers = [pointer for tid in tracee.tids for pointer in _pointers(tracee, tid)]
    for address, size in leftovers(tracee.pid):
        if any(address <= pointer < address + size for pointer in pointers):
            continue
        if tracee.remote_syscall(tracee.tids[0], NUMBERS["munmap"], address, size) == 0:
            freed += size
    return freed


def _pointers(tracee: Tracee, tid: int) -> tuple[int, int]:
    registers = tracee.registers(tid)
    return registers.rip, registers.rsp

"""What a tracer that was killed left in a process: areas of a parasite, mapped and no longer used. Taken out here."""

from __future__ import annotations

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee.area import areas
from migrate.engine.tracee.tree import Tracee


def cure(tracee: Tracee) -> int:
    """Unmap them all from a stopped process; how many bytes that were. None are while a thread is still on its way home
    (see `Tracee.on_the_way_home`): let it run for a moment, and stop it again."""
    freed = 0
    found = areas(tracee.memory)
    if found and tracee.on_the_way_home():
        return 0
    for address, size in found:
        if tracee.remote_syscall(tracee.tids[0], NUMBERS["munmap"], address, size) == 0:
            freed += size
    return freed

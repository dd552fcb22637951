"""What a tracer that was killed left in a process: areas of a parasite, mapped and no longer used, and a userfaultfd
that was not closed yet. Taken out here."""

from __future__ import annotations

import os
import time

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee.area import areas
from migrate.engine.tracee.tree import Tracee
from migrate.errors import Failed

_PATIENCE = 5.0  # seconds for the threads to get home
_NAP = 0.002
_USERFAULTFD = "anon_inode:[userfaultfd]"


def cure(tracee: Tracee) -> int:
    """Stop a process, which stays stopped, and take everything out of it; how many bytes were mapped. A process that
    has a userfaultfd of its own is never moved, so one that is found in it is ours.

    Nothing can be unmapped while a thread is still on its way home (see `Tracee.on_the_way_home`): it is let run for a
    moment. Failed when it does not get there."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        tracee.stop()
        if not tracee.on_the_way_home():
            break
        tracee.resume()
        if time.monotonic() > deadline:
            raise Failed(f"a thread of process {tracee.pid} does not get home from the last try")
        time.sleep(_NAP)
    freed, tid = 0, tracee.tids[0]
    for address, size in areas(tracee.memory):
        if tracee.remote_syscall(tid, NUMBERS["munmap"], address, size) == 0:
            freed += size
    for number in _userfaultfds(tracee.pid):
        tracee.remote_syscall(tid, NUMBERS["close"], number)
    return freed


def _userfaultfds(pid: int) -> list[int]:
    directory = f"/proc/{pid}/fd"
    return [int(name) for name in os.listdir(directory) if os.readlink(f"{directory}/{name}") == _USERFAULTFD]

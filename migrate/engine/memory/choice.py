"""Which tracker a task gets: the best one that works, found out by trying."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.engine.kernel.probes import has_pagemap_scan, has_soft_dirty, has_wp_async
from migrate.engine.kernel.proc import Proc
from migrate.engine.memory.digests import DigestTracker
from migrate.engine.memory.softdirty import SoftDirtyTracker
from migrate.engine.memory.tracker import Tracker
from migrate.engine.memory.writeprotect import RemoteSyscall, WriteProtectTracker
from migrate.errors import Failed


@dataclass(frozen=True)
class Choice:
    tracker: Tracker
    rejected: tuple[str, ...]  # why not a better one, in words


def choose(process: Proc, pidfd: int, remote_syscall: RemoteSyscall) -> Choice:
    """PAGEMAP_SCAN, else soft-dirty bits, else page digests. ``remote_syscall`` is called twice at most, in the task."""
    rejected: list[str] = []
    if has_pagemap_scan() and has_wp_async():
        try:
            return Choice(WriteProtectTracker.create(process, pidfd, remote_syscall), ())
        except Failed as error:  # a seccomp filter, or no descriptor left
            rejected.append(str(error))
    else:
        rejected.append("this kernel has no PAGEMAP_SCAN with asynchronous write protection (Linux 6.7)")
    if has_soft_dirty():
        return Choice(SoftDirtyTracker(process), tuple(rejected))
    rejected.append("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)")
    return Choice(DigestTracker(process), tuple(rejected))

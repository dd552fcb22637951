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

AUTO, PAGEMAP_SCAN, SOFT_DIRTY, DIGEST = "auto", "pagemap-scan", "soft-dirty", "digest"


@dataclass(frozen=True)
class Choice:
    tracker: Tracker
    rejected: tuple[str, ...]  # why not a better one, in words


def choose(
    process: Proc, pidfd: int, remote_syscall: RemoteSyscall, wanted: str = AUTO, gently: bool = False
) -> Choice:
    """PAGEMAP_SCAN, else soft-dirty bits, else page digests; or the one that is ``wanted``, or Failed.
    ``remote_syscall`` is called at most twice, in the task. ``gently``: see `remote.ForeignMemory`."""
    rejected: list[str] = []
    if wanted == DIGEST:
        return Choice(DigestTracker(process, gently), ())
    if wanted == SOFT_DIRTY:
        rejected.append("another one was asked for")
    elif has_pagemap_scan() and has_wp_async():
        try:
            return Choice(WriteProtectTracker.create(process, pidfd, remote_syscall), ())
        except Failed as error:  # a seccomp filter, or no descriptor left
            rejected.append(str(error))
    else:
        rejected.append("this kernel has no PAGEMAP_SCAN with asynchronous write protection (Linux 6.7)")
    if wanted == PAGEMAP_SCAN:
        raise Failed(f"--tracker {wanted}: {rejected[0]}")
    if has_soft_dirty():
        return Choice(SoftDirtyTracker(process), tuple(rejected))
    rejected.append("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)")
    if wanted == SOFT_DIRTY:
        raise Failed(f"--tracker {wanted}: {rejected[-1]}")
    return Choice(DigestTracker(process, gently), tuple(rejected))

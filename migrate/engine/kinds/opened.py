"""What the dump of descriptors sees: the process, and one open file description of it at a time."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from migrate.engine.kernel.fdcalls import O_PATH, pidfd_getfd
from migrate.engine.kernel.fdinfo import FdInfo, fdinfo
from migrate.engine.kernel.mountinfo import Mount, mountinfo
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.timens import own_offsets, task_offsets
from migrate.errors import Passing, Problem

Key = tuple[int, int]  # st_dev, st_ino: which object a description is of


def key_of(found: os.stat_result) -> Key:
    """The object that stat(2) tells about."""
    return found.st_dev, found.st_ino


@dataclass(frozen=True)
class DumpOptions:
    """``frozen``: the process is stopped, so nothing can vanish between two looks, what is read is final, and files on
    network file systems are flushed. ``mapped``: for every object that the process has mapped shared, the ranges
    (offset, length) whose contents travel with the memory. ``limit``: bytes of contents of deleted files, memfds and
    pipes that may travel."""

    frozen: bool = False
    mapped: Mapping[Key, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    limit: int = 64 << 20


class Dump:
    """The process under the dump and what is found out about it on the way. Problems collect here."""

    def __init__(self, proc: Proc, pidfd: int, options: DumpOptions) -> None:
        self.proc, self.pidfd, self.options = proc, pidfd, options
        self.pid = proc.pid
        self.problems: list[Problem] = []

    @cached_property
    def own_pid(self) -> int:
        """Its number in the innermost PID namespace."""
        raw = self.proc.text("status")
        return int(raw[raw.index("\nNSpid:") + 7 :].split("\n", 1)[0].split()[-1])

    @cached_property
    def mounts(self) -> list[Mount]:
        return mountinfo(self.proc.text("mountinfo"))

    @cached_property
    def prefix(self) -> str:
        """What goes before a path that /proc shows to make it ours. Links are shown from the root of the reader, or
        from that of the mount namespace when it is another (d_path(), fs/d_path.c): chroot makes no difference."""
        theirs, ours = self.proc.stat("ns/mnt"), os.stat("/proc/self/ns/mnt")
        return "" if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) else f"/proc/{self.pid}/root"

    @cached_property
    def clock_offsets(self) -> dict[int, int]:
        """By clock id: what to add to our clock to have the task's, in nanoseconds (time_namespaces(7))."""
        theirs, ours = task_offsets(self.proc), own_offsets()
        boottime = theirs.boottime - ours.boottime
        return {1: theirs.monotonic - ours.monotonic, 7: boottime, 9: boottime}

    def at(self, clock: int, monotonic: int) -> int:
        """What the task's clock showed when our CLOCK_MONOTONIC showed ``monotonic``, nanoseconds. The alarm clocks
        (8, 9) tell the time of those that they are made of."""
        base = {8: time.CLOCK_REALTIME, 9: time.CLOCK_BOOTTIME}.get(clock, clock)
        shift = monotonic + self.clock_offsets.get(clock, 0)
        if base == time.CLOCK_MONOTONIC:
            return shift
        # We may lose the CPU between two looks at clocks: of three pairs the closest tells their difference.
        pairs = []
        for _ in range(3):
            before, there, after = time.monotonic_ns(), time.clock_gettime_ns(base), time.monotonic_ns()
            pairs.append((after - before, there - (before + after) // 2))
        return shift + min(pairs)[1]

    def leads_to(self, path: str, found: os.stat_result) -> bool:
        """Whether the path, as /proc shows it, leads to this very inode."""
        try:
            there = os.stat(self.prefix + path, follow_symlinks=False)
        except (OSError, ValueError):
            return False
        return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)

    def refuse(self, where: str, what: str, advice: str = "", passing: bool = False) -> None:
        """``passing``: for now (`Passing`)."""
        kind = Passing if passing else Problem
        self.problems.append(kind(f"pid {self.pid} {where}", what, advice))


class OpenFile:
    """An open file description, through the descriptors ``numbers`` of the task that share it."""

    def __init__(self, dump: Dump, number: int, link: str, raw: str, flags: int, found: os.stat_result) -> None:
        self.dump, self.link, self.raw, self.stat = dump, link, raw, found
        self.flags = flags  # of open(2), without O_CLOEXEC, which is the descriptor's
        self.key, self.format = key_of(found), stat.S_IFMT(found.st_mode)
        self.numbers = [number]
        self.cloexec: dict[int, bool] = {}

    @cached_property
    def info(self) -> FdInfo:
        """Parsed only where it is a new sight: that takes longer than all the system calls."""
        return fdinfo(self.raw)

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR) and not self.flags & O_PATH

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR) and not self.flags & O_PATH

    @property
    def where(self) -> str:
        """For people: the lowest of its numbers."""
        return f"fd {self.numbers[0]}"

    @property
    def entry(self) -> str:
        """Its magic link, to be opened anew: same inode, another description, so an offset of our own."""
        return f"fd/{self.numbers[0]}"

    @property
    def mount(self) -> Mount | None:
        """Where it is mounted; None when the process cannot reach that mount (a kernel-internal one, or unmounted)."""
        return next((mount for mount in self.dump.mounts if mount.mnt_id == self.info.mnt_id), None)

    @contextmanager
    def duplicate(self) -> Iterator[int]:
        """A descriptor here of the same description, only for a moment: as long as we hold it, closing it there gives
        its peers no end of file and drops no lock."""
        ours = pidfd_getfd(self.dump.pidfd, self.numbers[0])
        try:
            yield ours
        finally:
            os.close(ours)

    def identity(self) -> tuple[object, ...]:
        """Equal for two looks between which nothing happened that /proc would show."""
        s = self.stat
        return (
            self.link, self.raw, tuple(self.numbers), s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_size,
            s.st_mtime_ns, s.st_ctime_ns,
        )  # fmt: skip

    carrier: OpenFile | None = None  # the socket in which it waits, of one that we have from there

    def refuse(self, what: str, advice: str = "", passing: bool = False) -> None:
        if self.carrier is not None:
            unreceived = f"unix socket in which a descriptor waits to be received (SCM_RIGHTS): {what}"
            self.carrier.refuse(unreceived, "let it be received first", passing=True)
        else:
            self.dump.refuse(self.where, what, advice, passing)

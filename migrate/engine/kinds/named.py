"""Shared memory with a name (shm_open(3)): files in /dev/shm, which is each host's own, so they travel. Python's
multiprocessing has such memory, and semaphores (sem_open(3)) are such files.

They are made in directories of their own and get their names in the commit (`kinds.node`): what has one of these there
is somebody's, and never replaced. Here the names go with the copies (`engine.leftover`). Who has them open opens them
by the way to that directory; /proc shows the name once they have it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from migrate.engine.kernel.mountinfo import mountinfo
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.contents import Attributes, Range, Travelling, read_chunks, write_chunks
from migrate.engine.kinds.needs import NEW_NAME, FileNeed
from migrate.engine.kinds.node import AT_FDCWD, Node, token
from migrate.engine.kinds.placing import Placing
from migrate.engine.program import Program, Slot
from migrate.errors import Problem

PLACE = "/dev/shm/"
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def node_of(proc: Proc, path: str, found: os.stat_result) -> Node | None:
    """None for a file that is not shared memory with this one name."""
    if not path.startswith(PLACE) or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return None
    device = os.major(found.st_dev), os.minor(found.st_dev)
    mounts = mountinfo(proc.text("mountinfo"))
    if not any((mount.major, mount.minor) == device and mount.fstype == "tmpfs" for mount in mounts):
        return None
    return Node(path, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, token(*(found.st_dev, found.st_ino)))


def name_of(proc: Proc, was: str, found: os.stat_result) -> str:
    """Of a file that has lost the name ``was``, another one in the same place; "" where it has none."""
    if not was.startswith(PLACE) or found.st_nlink != 1:
        return ""
    with os.scandir(f"{proc.path}/root{PLACE}") as entries:
        same = (each.name for each in entries if each.inode() == found.st_ino)
        return next((PLACE + name for name in same if _leads_to(f"{proc.path}/root{PLACE}{name}", found)), "")


def _leads_to(path: str, found: os.stat_result) -> bool:
    there = os.lstat(path)
    return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)


def create(program: Program, node: Node, size: int) -> Slot:
    """Empty, and beside its place. A directory that is there is ours: nobody else knows its name."""
    label, path = f"shared memory {node.path}", program.string(node.staged)
    program.syscall("mkdirat", AT_FDCWD, program.string(node.stage), 0o700, label=label, errno_ok=errno.EEXIST)
    program.syscall("unlinkat", AT_FDCWD, path, 0, label=label, errno_ok=errno.ENOENT)  # of an earlier round
    fd = program.syscall("openat", AT_FDCWD, path, _NEW, 0o600, label=label)
    program.syscall("fchown", fd, node.uid, node.gid, label=f"{label}: owner")
    program.syscall("fchmod", fd, node.mode, label=f"{label}: mode")
    program.syscall("ftruncate", fd, size, label=f"{label}: size")
    return fd


@dataclass(frozen=True)
class NamedMemory(Travelling):
    """One that somebody has open."""

    node: Node

    @classmethod
    def dump(
        cls, proc: Proc, entry: str, node: Node, found: os.stat_result, skip: tuple[Range, ...], limit: int
    ) -> NamedMemory | Problem:
        """``entry``: ``fd/N`` in /proc/PID."""
        try:
            chunks = read_chunks(proc, entry, skip, limit)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            what = f"shared memory of more than {limit >> 20} MiB ({node.path}) that is not mapped"
            return Problem(f"pid {proc.pid} {entry}", what, "map it shared, or close it")
        return cls((found.st_dev, found.st_ino), Attributes.of(found), chunks, node)

    def needs(self, where: str) -> list[FileNeed]:
        return [FileNeed(where, self.node.path, NEW_NAME)]

    def make(self, placing: Placing) -> int:
        """The file with its size, without contents."""
        number = placing.numbers.lowest()
        create(placing.program, self.node, self.attributes.size)
        placing.numbers.take(number)
        return number

    def open(self, placing: Placing, flags: int) -> int:
        """A description of it, with all its flags."""
        return placing.open(self.node.staged, flags)

    def finish(self, placing: Placing, number: int, contents: bool, ready: bool) -> None:
        """What is not there yet: contents and times."""
        if ready:
            self.attributes.give_owner(placing, number)
        if contents:
            write_chunks(placing.program, number, self.chunks, placing.label)
        self.attributes.give_times(placing, number)

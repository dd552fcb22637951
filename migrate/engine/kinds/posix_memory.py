"""POSIX shared memory (shm_open(3)): a file of the file system in memory at /dev/shm, mapped for writing and shared.

Other files with names must be on the destination already. This one is on no other machine, and so it is made there, and
its contents travel with the memory. It is made in a directory that nobody else may enter, and comes under its own name
in the commit. Here its name goes when the copy here has ended.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from migrate.engine.kernel.mountinfo import mountinfo
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.vma import FILE, POSIX, VMA, Backing
from migrate.engine.program import Program

PLACE = "/dev/shm"
Key = tuple[int, int]
AT_FDCWD, AT_REMOVEDIR = -100, 0x200


def recognised(proc: Proc, backing: Backing) -> Backing:
    """The file that is mapped, as such memory if it is."""
    if not backing.path.startswith(f"{PLACE}/"):
        return backing
    device = os.major(backing.dev), os.minor(backing.dev)
    mounts = (mount for mount in mountinfo(proc.text("mountinfo")) if (mount.major, mount.minor) == device)
    if not any(mount.fstype == "tmpfs" and mount.point == PLACE for mount in mounts):
        return backing
    try:
        found = os.stat(f"/proc/{proc.pid}/root{backing.path}")
    except FileNotFoundError:  # its name has just been taken away
        return backing
    return replace(backing, kind=POSIX, mtime_ns=0, owner=(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid))


def other_name(proc: Proc, path: str, found: os.stat_result) -> str | None:
    """Of a file in PLACE that is mapped by a name which is gone: sem_open(3) makes a file by one name, and then gives
    it the right one."""
    if os.path.dirname(path) != PLACE:
        return None
    with os.scandir(f"/proc/{proc.pid}/root{PLACE}") as entries:
        for entry in entries:
            if entry.inode() == found.st_ino and entry.stat(follow_symlinks=False).st_dev == found.st_dev:
                return f"{PLACE}/{entry.name}"
    return None


def named(vmas: Sequence[VMA], known: Mapping[Key, Backing]) -> list[VMA]:
    """The VMAs of one process, with what is mapped for reading only as such memory where another one, or another area,
    has it for writing."""
    return [
        replace(vma, backing=known[vma.backing.key])
        if vma.shared and vma.backing is not None and vma.backing.kind == FILE and vma.backing.key in known
        else vma
        for vma in vmas
    ]


def create(program: Program, backing: Backing, number: int, room: str) -> None:
    """At the descriptor ``number``. ``room``: a directory in PLACE, which is made if it is not there."""
    label, staged = f"shared memory {backing.path}", program.string(_staged(room, backing))
    program.syscall("mkdirat", AT_FDCWD, program.string(room), 0o700, label=label, errno_ok=17)  # EEXIST
    # One that has been made for a process which has begun anew, and is nobody else's.
    program.syscall("unlinkat", AT_FDCWD, staged, 0, label=label, errno_ok=2)  # ENOENT
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = program.syscall("openat", AT_FDCWD, staged, flags, 0o600, label=label)
    mode, uid, gid = backing.owner
    program.syscall("ftruncate", fd, backing.size, label=f"size of {label}")
    program.syscall("fchown", fd, uid, gid, label=f"owner of {label}")
    program.syscall("fchmod", fd, mode, label=f"mode of {label}")
    program.syscall("dup3", fd, number, os.O_CLOEXEC, label=label, expect=number)
    program.syscall("close", fd, label=label)


def _staged(room: str, backing: Backing) -> str:
    return f"{room}/{backing.ino:x}"


def objects(spaces: Iterable[Iterable[VMA]]) -> tuple[Backing, ...]:
    """Each of them once."""
    found: dict[tuple[int, int], Backing] = {}
    for vmas in spaces:
        for vma in vmas:
            if vma.backing is not None and vma.backing.kind == POSIX:
                found.setdefault(vma.backing.key, vma.backing)
    return tuple(found.values())


def place(program: Program, made: Sequence[Backing], gone: Sequence[Backing], room: str) -> None:
    """Give them their names. ``gone``: what has come and gone meanwhile. In the commit, where nothing may fail any
    more."""
    for each in gone:
        label = f"shared memory {each.path}, which is gone"
        program.syscall("unlinkat", AT_FDCWD, program.string(_staged(room, each)), 0, label=label, ignore=True)
    for each in made:
        staged, label = program.string(_staged(room, each)), f"name of shared memory {each.path}"
        first, name = program.string(each.shown or each.path), program.string(each.path)
        program.syscall("renameat", AT_FDCWD, staged, AT_FDCWD, first, label=label, ignore=True)
        if each.shown:
            program.syscall("linkat", AT_FDCWD, first, AT_FDCWD, name, 0, label=label, ignore=True)
            program.syscall("unlinkat", AT_FDCWD, first, 0, label=label, ignore=True)
    if made or gone:
        args = AT_FDCWD, program.string(room), AT_REMOVEDIR
        program.syscall("unlinkat", *args, label="the directory of new shared memory", ignore=True)


def remove(gone: Sequence[Backing]) -> None:
    """Here, where nobody has them any more."""
    for each in gone:
        try:
            found = os.lstat(each.path)
            if (found.st_dev, found.st_ino) == each.key:
                os.unlink(each.path)
        except FileNotFoundError:
            continue

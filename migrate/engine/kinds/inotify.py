"""inotify(7): watches with their descriptors, which programs compare with those in events.

The kernel shows the inode of a watch, not its path: that comes from the file handle, or from the paths that the
process is known to use. Events that wait to be read cannot be put into another host's queue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kernel.fdcalls import open_by_handle, pending_bytes
from migrate.engine.kernel.fdinfo import pairs
from migrate.engine.kinds.needs import ANY, FileNeed
from migrate.engine.kinds.opened import Dump, OpenFile
from migrate.engine.kinds.placing import Placing

IN_DONT_FOLLOW = 0x2000000
INOTIFY_IOC_SETNEXTWD = 0x40044900  # _IOW('I', 0, s32), linux/inotify.h, since 4.18; CONFIG_CHECKPOINT_RESTORE


@dataclass(frozen=True)
class InotifyWatch:
    """``wd``: what events call it."""

    wd: int
    path: str
    mask: int


@dataclass(frozen=True)
class Inotify:
    watches: tuple[InotifyWatch, ...]

    applied: ClassVar[int] = os.O_NONBLOCK

    @classmethod
    def dump(cls, file: OpenFile) -> Inotify | None:
        with file.duplicate() as fd:
            pending = pending_bytes(fd)
        if pending:
            file.refuse(f"inotify instance with events that the process has not read ({pending} bytes)", "try again")
            return None
        found = []
        for line in file.info.lines.get("inotify", []):
            fields = pairs(line)
            wd = int(fields["wd"], 16)
            path = _path(file.dump, fields)
            if path is None:
                file.refuse(
                    f"inotify watch {wd} of inode {int(fields['ino'], 16)}, whose path cannot be found",
                    "its file was deleted, or is on a file system without file handles",
                )
                return None
            found.append(InotifyWatch(wd, path, int(fields["mask"], 16)))
        return cls(tuple(sorted(found, key=lambda watch: watch.wd)))

    def still_good(self, file: OpenFile) -> bool:
        return False  # events; and what is watched may have been renamed

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return [FileNeed(f"{where} (inotify)", watch.path, ANY) for watch in self.watches]

    def open(self, placing: Placing, flags: int) -> int:
        return placing.call("inotify_init1", os.O_CLOEXEC | flags & os.O_NONBLOCK)

    def watch(self, placing: Placing, number: int) -> None:
        """Last of all, so that nothing the restore itself does is seen."""
        program = placing.program
        for watch in self.watches:
            label = f"{placing.label}: watch {watch.wd} of {watch.path}"
            program.syscall("ioctl", number, INOTIFY_IOC_SETNEXTWD, watch.wd, label=label)
            mask = watch.mask | IN_DONT_FOLLOW  # the path is the inode's own, also when it is a symbolic link
            program.syscall("inotify_add_watch", number, program.string(watch.path), mask, label=label, expect=watch.wd)


def _path(dump: Dump, fields: dict[str, str]) -> str | None:
    """A path of the inode that a watch is on."""
    device, inode = int(fields["sdev"], 16), int(fields["ino"], 16)  # MAJOR and MINOR of the kernel: 12 and 20 bits
    major, minor = device >> 20, device & 0xFFFFF
    if "f_handle" in fields:
        for mount in dump.mounts:
            if (mount.major, mount.minor) == (major, minor):
                path = _by_handle(dump, mount.point, int(fields["fhandle-type"], 16), bytes.fromhex(fields["f_handle"]))
                if path is not None and _is(dump, path, inode):
                    return path
    # Overlays and btrfs show devices that stat(2) does not, so the inode number alone has to do.
    return next((path for path in _known_paths(dump) if _is(dump, path, inode)), None)


def _by_handle(dump: Dump, mount: str, kind: int, handle: bytes) -> str | None:
    try:
        where = os.open(dump.prefix + mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # a mount on a file, or one that another hides
    try:
        found = open_by_handle(where, kind, handle)
    except OSError:
        return None  # ESTALE: not of this mount's file system; EPERM: no CAP_DAC_READ_SEARCH
    finally:
        os.close(where)
    try:
        return os.readlink(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


def _is(dump: Dump, path: str, inode: int) -> bool:
    try:
        return os.stat(dump.prefix + path, follow_symlinks=False).st_ino == inode
    except (OSError, ValueError):
        return False


def _known_paths(dump: Dump) -> Iterator[str]:
    """What the process has open, is in or maps, and the directories of these."""
    seen: set[str] = set()
    for name in ["cwd", "root", "exe", *(f"fd/{number}" for number in dump.proc.names("fd"))]:
        try:
            path = dump.proc.link(name)
        except FileNotFoundError:
            continue
        while path.startswith("/") and path not in seen:
            seen.add(path)
            yield path
            path = os.path.dirname(path)

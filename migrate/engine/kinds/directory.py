"""Directories, and descriptors that only name a place (O_PATH)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kernel.fdcalls import O_PATH, O_TMPFILE_BIT
from migrate.engine.kinds.needs import ANY, DIRECTORY, FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import EVERY_FLAG, Placing, flags_for_open
from migrate.engine.kinds.regular import SEEK_SET, why_not_reached

_ENTRIES = 512  # bytes: room for some entries, of which none is longer than 280


@dataclass(frozen=True)
class Directory:
    """``offset`` is the file system's cookie for the next entry of getdents(2): worth something only in the same
    directory, which ``ino`` tells apart."""

    path: str
    offset: int
    ino: int

    applied: ClassVar[int] = EVERY_FLAG

    @classmethod
    def dump(cls, file: OpenFile) -> Directory | None:
        if not file.dump.leads_to(file.link, file.stat):
            file.refuse(*why_not_reached(file))
            return None
        return cls(file.link, file.info.pos, file.stat.st_ino)

    def still_good(self, file: OpenFile) -> bool:
        return True

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return [FileNeed(where, self.path, DIRECTORY, ino=self.ino if self.offset else 0)]

    def open(self, placing: Placing, flags: int) -> int:
        number = placing.open(self.path, flags_for_open(flags) & ~O_TMPFILE_BIT | os.O_DIRECTORY)
        if self.offset:
            program, label = placing.program, placing.label
            # On ext4 a directory whose first read is at the end stays empty even when it is rewound: the place that it
            # begins from is remembered at that read (ext4_dx_readdir, fs/ext4/dir.c). So read from the start first.
            program.syscall("getdents64", number, program.space(_ENTRIES), _ENTRIES, label=label)
            program.syscall("lseek", number, self.offset, SEEK_SET, label=label, expect=self.offset)
        return number


@dataclass(frozen=True)
class PlaceOnly:
    """A descriptor opened with O_PATH: it names a file of any type and does nothing else."""

    path: str
    directory: bool

    applied: ClassVar[int] = EVERY_FLAG

    @classmethod
    def dump(cls, file: OpenFile) -> PlaceOnly | None:
        if not file.dump.leads_to(file.link, file.stat):
            file.refuse(*why_not_reached(file))
            return None
        return cls(file.link, file.format == stat.S_IFDIR)

    def still_good(self, file: OpenFile) -> bool:
        return True

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return [FileNeed(where, self.path, DIRECTORY if self.directory else ANY)]

    def open(self, placing: Placing, flags: int) -> int:
        # O_NOFOLLOW is in the flags when the link itself was meant; the path has no other symbolic links.
        return placing.open(self.path, flags & (O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW))

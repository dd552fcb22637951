"""Regular files that have a name: opened again by it, with the same flags and offset."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kernel.fdcalls import O_TMPFILE_BIT
from migrate.engine.kinds.needs import FILE, FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import EVERY_FLAG, Placing, flags_for_open

SEEK_SET, SEEK_HOLE = 0, 4


@dataclass(frozen=True)
class Regular:
    """``size`` and ``mtime_ns`` as of the last look. ``pseudo``: on a file system that the kernel makes up (/proc)."""

    path: str
    offset: int
    size: int
    mtime_ns: int
    pseudo: bool
    network: bool

    applied: ClassVar[int] = EVERY_FLAG

    @classmethod
    def dump(cls, file: OpenFile) -> Regular | None:
        if file.stat.st_nlink == 0 or not file.dump.leads_to(file.link, file.stat):
            file.refuse(*why_not_reached(file))
            return None
        mount = file.mount
        pseudo, network = mount is not None and mount.pseudo, mount is not None and mount.network
        if network and mount is not None and os.path.basename(file.link).startswith(".nfs"):
            file.refuse(
                f"deleted file on {mount.fstype} ({file.link})", "it vanishes with its last opener here; close it"
            )
            return None
        found = file.stat
        if network and file.writes and file.dump.options.frozen:
            # What this host has not written out yet, another client does not see.
            with file.duplicate() as fd:
                os.fsync(fd)
                found = os.fstat(fd)
        return cls(file.link, file.info.pos, found.st_size, found.st_mtime_ns, pseudo, network)

    def still_good(self, file: OpenFile) -> bool:
        """Whether a look that shows no difference is enough to keep this."""
        return not (self.network and file.writes)

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        mtime = 0 if self.pseudo else self.mtime_ns
        return [FileNeed(where, self.path, FILE, self.size, mtime, writable=writable)]

    def open(self, placing: Placing, flags: int) -> int:
        number = placing.open(self.path, flags_for_open(flags) & ~O_TMPFILE_BIT)
        if not self.pseudo:
            self._check_size(placing, number, flags)
        if self.offset:
            placing.program.syscall("lseek", number, self.offset, SEEK_SET, label=placing.label, expect=self.offset)
        return number

    def _check_size(self, placing: Placing, number: int, flags: int) -> None:
        """The file must be as the process left it when it was stopped. Who appends, or reads what others append to,
        is content with a longer one. Past the end SEEK_HOLE is ENXIO (lseek(2)): a comparison in one call."""
        program = placing.program
        label = f"{placing.label}: at least {self.size} bytes"
        if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND:
            label = f"{placing.label}: exactly {self.size} bytes"
            program.syscall("lseek", number, self.size, SEEK_HOLE, label=label, expect=-6)  # ENXIO
        if self.size:
            program.syscall("lseek", number, self.size - 1, SEEK_HOLE, label=label)
            program.syscall("lseek", number, 0, SEEK_SET, label=placing.label, expect=0)


def why_not_reached(file: OpenFile) -> tuple[str, str]:
    """What keeps a path from leading to the file."""
    name = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO"}.get(file.format, "file")
    if file.link.endswith(" (deleted)"):
        if file.stat.st_nlink == 0 or file.format == stat.S_IFDIR:
            return f"deleted {name} ({file.link.removesuffix(' (deleted)')})", "close it"
        return f"{name} by a deleted name that has others ({file.link.removesuffix(' (deleted)')})", "close it"
    return (
        f"{name} that its path does not lead to ({file.link})",
        "something is mounted over it, or its file system was unmounted",
    )

"""memfd_create(2): a file without a name, with its seals."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import F_ADD_SEALS, F_GET_SEALS
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.contents import Attributes, Range, Travelling, read_chunks, write_chunks
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.placing import Placing
from migrate.errors import Problem

MFD_ALLOW_SEALING = 2
F_SEAL_SEAL = 1
_PREFIX, _SUFFIX = "/memfd:", " (deleted)"
_PAGE = 4096


@dataclass(frozen=True)
class Memfd(Travelling):
    """``seals``: bits of fcntl(2) F_ADD_SEALS; F_SEAL_SEAL alone is what a memfd that allows none has."""

    name: str
    seals: int

    @staticmethod
    def is_one(link: str) -> bool:
        """Whether a link of /proc/PID/fd or map_files shows one."""
        return link.startswith(_PREFIX) and link.endswith(_SUFFIX)

    def still_sealed_so(self, proc: Proc, entry: str) -> bool:
        """Whether the seals are the same: they are not among what stat(2) shows."""
        fd = proc.open(entry)
        try:
            return fcntl.fcntl(fd, F_GET_SEALS) == self.seals
        finally:
            os.close(fd)

    @classmethod
    def dump(
        cls, proc: Proc, entry: str, link: str, found: os.stat_result, skip: tuple[Range, ...], limit: int
    ) -> Memfd | Problem:
        """``entry``: ``fd/N`` or ``map_files/…`` in /proc/PID."""
        fd = proc.open(entry)
        try:
            seals = fcntl.fcntl(fd, F_GET_SEALS)
            huge = os.fstatvfs(fd).f_bsize > _PAGE  # hugetlbfs tells the size of its pages there; tmpfs never does
        finally:
            os.close(fd)
        if huge:
            return Problem(f"pid {proc.pid} {entry}", "memfd with huge pages (MFD_HUGETLB)", "use ordinary pages")
        try:
            chunks = read_chunks(proc, entry, skip, limit)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            return Problem(f"pid {proc.pid} {entry}", f"memfd with more than {limit >> 20} MiB in it", "map it shared")
        key = (found.st_dev, found.st_ino)
        return cls(key, Attributes.of(found), chunks, link[len(_PREFIX) : -len(_SUFFIX)], seals)

    def needs(self, where: str) -> list[FileNeed]:
        return []

    def make(self, placing: Placing) -> int:
        """The file with its size, without contents and seals."""
        number = placing.call("memfd_create", placing.program.string(self.name), MFD_ALLOW_SEALING | 1)  # MFD_CLOEXEC
        self.attributes.give(placing, number)
        return number

    def finish(self, placing: Placing, number: int, contents: bool, ready: bool) -> None:
        """What is not there yet: contents, times, and then the seals, which may forbid all that. ``ready``: the address
        space made and sealed it, but knows nothing of its owner and mode."""
        if ready:
            self.attributes.give_owner(placing, number)
        if contents:
            write_chunks(placing.program, number, self.chunks, placing.label)
        self.attributes.give_times(placing, number)
        if self.seals and not ready:
            placing.program.syscall("fcntl", number, F_ADD_SEALS, self.seals, label=f"{placing.label}: seals")

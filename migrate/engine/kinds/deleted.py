"""Files that were deleted and are still open: made again on the destination, in the same directory, and deleted again.

With the old name where it is free there, so that /proc shows the same; without one (O_TMPFILE, open(2)) where
something else has it by now."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import O_TMPFILE_BIT
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.contents import Attributes, Range, Travelling, read_chunks, write_chunks
from migrate.engine.kinds.needs import FREE_NAME, FileNeed
from migrate.engine.kinds.placing import AT_FDCWD, Placing
from migrate.errors import Problem

_SUFFIX = " (deleted)"


@dataclass(frozen=True)
class DeletedFile(Travelling):
    """``nameless``: it never had a name and may still get one (O_TMPFILE, then linkat(2))."""

    path: str
    nameless: bool

    @classmethod
    def dump(
        cls,
        proc: Proc,
        entry: str,
        link: str,
        found: os.stat_result,
        skip: tuple[Range, ...],
        limit: int,
        flags: int = 0,
    ) -> DeletedFile | Problem:
        """``entry``: ``fd/N`` or ``map_files/…`` in /proc/PID; ``flags``: those it was opened with."""
        try:
            chunks = read_chunks(proc, entry, skip, limit)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            return Problem(
                f"pid {proc.pid} {entry}", f"deleted file with more than {limit >> 20} MiB in it ({link})", "close it"
            )
        key, path = (found.st_dev, found.st_ino), link.removesuffix(_SUFFIX)
        return cls(key, Attributes.of(found), chunks, path, bool(flags & O_TMPFILE_BIT))

    def needs(self, where: str) -> list[FileNeed]:
        return [FileNeed(where, self.path, FREE_NAME)]

    def make(self, placing: Placing) -> int:
        """The file with its size, without contents."""
        program = placing.program
        if self.nameless or self.path in placing.context.taken:
            number = placing.open(os.path.dirname(self.path), O_TMPFILE_BIT | os.O_DIRECTORY | os.O_RDWR, 0o600)
        else:
            number = placing.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            program.syscall(
                "unlinkat", AT_FDCWD, program.string(self.path), 0, label=f"{placing.label}: delete it again"
            )
        self.attributes.give(placing, number)
        return number

    def finish(self, placing: Placing, number: int, contents: bool, ready: bool) -> None:
        """What is not there yet: contents and times. ``ready``: the address space made it."""
        if ready:
            self.attributes.give_owner(placing, number)
        if contents:
            write_chunks(placing.program, number, self.chunks, placing.label)
        self.attributes.give_times(placing, number)

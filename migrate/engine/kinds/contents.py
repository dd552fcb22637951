"""What is in a file that does not exist on the destination and so has to travel: memfds and deleted files."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.opened import Key
from migrate.engine.kinds.placing import Placing
from migrate.engine.program import Program

CHUNK = 1 << 20  # bytes
_SECOND = 10**9

Range = tuple[int, int]  # offset, length
Chunk = tuple[int, bytes]  # offset, content


@dataclass(frozen=True)
class Attributes:
    """Of an inode. Sizes in bytes."""

    size: int
    mode: int  # permissions
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Attributes:
        mode = stat.S_IMODE(found.st_mode)
        return cls(found.st_size, mode, found.st_uid, found.st_gid, found.st_atime_ns, found.st_mtime_ns)

    def give(self, placing: Placing, number: int) -> None:
        """To a file just made."""
        self.give_owner(placing, number)
        if self.size:
            placing.program.syscall("ftruncate", number, self.size, label=f"{placing.label}: size")

    def give_owner(self, placing: Placing, number: int) -> None:
        """Owner and mode."""
        program, label = placing.program, placing.label
        program.syscall("fchown", number, self.uid, self.gid, label=f"{label}: owner")
        program.syscall("fchmod", number, self.mode, label=f"{label}: mode")

    def give_times(self, placing: Placing, number: int) -> None:
        """Once the contents are there."""
        times = struct.pack("<4q", *divmod(self.atime_ns, _SECOND), *divmod(self.mtime_ns, _SECOND))
        placing.program.syscall("utimensat", number, 0, placing.program.data(times), 0, label=f"{placing.label}: times")


def read_chunks(proc: Proc, entry: str, skip: Sequence[Range], limit: int) -> tuple[Chunk, ...]:
    """The data of the file behind a magic link of /proc/PID, without its holes and without ``skip``, which travels
    with the memory. Opened anew, because seeking on a duplicate would move the process's own offset. Raises
    OSError EFBIG when it is more than ``limit`` bytes."""
    fd = proc.open(entry)
    try:
        chunks, total = [], 0
        for start, end in _data(fd):
            for at, length in _without(start, end, skip):
                total += length
                if total > limit:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), f"{proc.path}/{entry}")
                while length > 0:
                    content = os.pread(fd, min(CHUNK, length), at)
                    if not content:  # it was truncated meanwhile
                        break
                    chunks.append((at, content))
                    at, length = at + len(content), length - len(content)
        return tuple(chunks)
    finally:
        os.close(fd)


def _data(fd: int) -> Iterator[Range]:
    """(start, end) of what is not a hole (lseek(2))."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _without(start: int, end: int, skip: Sequence[Range]) -> Iterator[Range]:
    """The (offset, length) of what is left of a range."""
    for offset, length in sorted(skip):
        if offset > start:
            yield start, min(end, offset) - start
        start = max(start, offset + length)
        if start >= end:
            return
    yield start, end - start


def write_chunks(program: Program, number: int, chunks: Sequence[Chunk], label: str) -> None:
    for offset, content in chunks:
        where = program.data(content)
        words = f"{label}: contents"
        program.syscall("pwrite64", number, where, len(content), offset, label=words, expect=len(content))


@dataclass(frozen=True)
class Travelling:
    """The part that both kinds share: identity, attributes, and contents but for what travels with the memory."""

    key: Key
    attributes: Attributes
    chunks: tuple[Chunk, ...]

    @property
    def volume(self) -> int:
        """Bytes of contents."""
        return sum(len(content) for _, content in self.chunks)

"""eventfd(2): a count, and whether a read takes one of it or all."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import Placing

EFD_SEMAPHORE = 1
_U32 = 0xFFFF_FFFF


@dataclass(frozen=True)
class EventFd:
    count: int
    semaphore: bool

    applied: ClassVar[int] = os.O_NONBLOCK

    @classmethod
    def dump(cls, file: OpenFile) -> EventFd | None:
        count = int(file.info.one("eventfd-count"), 16)
        if "eventfd-semaphore" in file.info.lines:
            return cls(count, file.info.one("eventfd-semaphore") == "1")
        # Before 6.5 ("eventfd: show the EFD_SEMAPHORE flag in fdinfo") only a read tells, so that a process which
        # still runs is taken to have none.
        return cls(count, file.dump.options.frozen and reads_one(file, count))

    def still_good(self, file: OpenFile) -> bool:
        return "eventfd-semaphore" in file.info.lines

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        kind = EFD_SEMAPHORE if self.semaphore else 0
        first = min(self.count, _U32)  # what the call takes is 32 bits wide
        number = placing.call("eventfd2", first, os.O_CLOEXEC | flags & os.O_NONBLOCK | kind)
        if self.count > first:
            rest = placing.program.data(struct.pack("<Q", self.count - first))
            placing.program.syscall("write", number, rest, 8, label=placing.label, expect=8)
        return number


def reads_one(file: OpenFile, count: int) -> bool:
    """Find out by reading from it, and put back what was read. Only for a process that is stopped: none of its threads
    is in a wait queue then, so no one sees the count move. Two are added first where they are needed: of less than two
    a read cannot tell."""
    with file.duplicate() as fd:
        added = 2 if count < 2 else 0
        if added:
            os.write(fd, struct.pack("=Q", added))
        (taken,) = struct.unpack("=Q", _read(fd))
        if taken == 1:
            for _ in range(added - 1):
                _read(fd)
            if not added:
                os.write(fd, struct.pack("=Q", 1))
            return True
        if count:
            os.write(fd, struct.pack("=Q", count))
        return False


def _read(fd: int) -> bytes:
    room = bytearray(8)
    os.readv(fd, [room])
    return bytes(room)

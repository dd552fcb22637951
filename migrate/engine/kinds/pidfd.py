"""pidfd_open(2): a process that can be waited for and signalled; only the process itself, as long as it moves alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import Placing

PIDFD_THREAD = os.O_EXCL  # linux/pidfd.h, since 6.9


@dataclass(frozen=True)
class PidFd:
    """Of the process itself. ``thread``: of its first thread alone."""

    thread: bool

    applied: ClassVar[int] = os.O_NONBLOCK

    @classmethod
    def dump(cls, file: OpenFile) -> PidFd | None:
        of = int(file.info.one("Pid"))
        if of != file.dump.pid:
            whose = "a process that has ended" if of < 0 else f"process or thread {of}" if of else "a hidden process"
            file.refuse(f"pidfd of {whose}", "close it, or move the process when it is done with it")
            return None
        return cls(bool(file.flags & PIDFD_THREAD))

    def still_good(self, file: OpenFile) -> bool:
        return True

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        own = placing.program.syscall("getpid", label=placing.label)
        number = placing.numbers.lowest()
        kind = flags & os.O_NONBLOCK | (PIDFD_THREAD if self.thread else 0)
        placing.program.syscall("pidfd_open", own, kind, label=placing.label, expect=number)
        placing.numbers.take(number)
        return number

"""signalfd(2): a mask. What it would give is in the process's queues of pending signals."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import Placing


@dataclass(frozen=True)
class SignalFd:
    """``mask``: signal n is bit n - 1."""

    mask: int

    applied: ClassVar[int] = os.O_NONBLOCK

    @classmethod
    def dump(cls, file: OpenFile) -> SignalFd | None:
        return cls(int(file.info.one("sigmask"), 16))

    def still_good(self, file: OpenFile) -> bool:
        return True

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        mask = placing.program.data(struct.pack("<Q", self.mask))
        return placing.call("signalfd4", -1, mask, 8, os.O_CLOEXEC | flags & os.O_NONBLOCK)

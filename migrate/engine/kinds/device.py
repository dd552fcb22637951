"""Character devices that every Linux has and that keep no state for who opens them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import DEVICE, FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import EVERY_FLAG, Placing, flags_for_open
from migrate.engine.kinds.regular import why_not_reached

# Documentation/admin-guide/devices.txt: null, zero, full, random, urandom
EVERYWHERE = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))


@dataclass(frozen=True)
class Device:
    path: str
    rdev: int

    applied: ClassVar[int] = EVERY_FLAG

    @classmethod
    def dump(cls, file: OpenFile) -> Device | None:
        if not file.dump.leads_to(file.link, file.stat):
            file.refuse(*why_not_reached(file))
            return None
        return cls(file.link, file.stat.st_rdev)

    def still_good(self, file: OpenFile) -> bool:
        return True

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return [FileNeed(where, self.path, DEVICE, rdev=self.rdev)]

    def open(self, placing: Placing, flags: int) -> int:
        return placing.open(self.path, flags_for_open(flags))

"""An open file description that several processes of a tree have: one makes it, the others take it from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import EVERY_FLAG, Placing


@dataclass(frozen=True)
class Taken:
    """``pid``: who makes it; ``number``: of its descriptor there. By pidfd_getfd(2), Linux 5.6, which wants the right
    to trace: restorees are root until the end."""

    pid: int
    number: int

    applied: ClassVar[int] = EVERY_FLAG  # they are the description's, not the descriptor's

    def still_good(self, file: OpenFile) -> bool:
        return False

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        there = placing.call("pidfd_open", self.pid, 0)
        taken = placing.call("pidfd_getfd", there, self.number, 0)
        placing.close(there)
        return taken

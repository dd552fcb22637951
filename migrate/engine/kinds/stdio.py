"""Standard streams that lead outside: a terminal, or a pipe or socket to another process.

They cannot follow the process to another host. Input comes to its end there, output goes to where the user chose. Where
the restorer was given standard streams (`migrate restore --stdio`), those take their place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import EVERY_FLAG, Placing

NUMBERS = frozenset({0, 1, 2})


@dataclass(frozen=True)
class StandardStream:
    """``input``: it was only read from, or is descriptor 0."""

    input: bool

    applied: ClassVar[int] = EVERY_FLAG

    def still_good(self, file: OpenFile) -> bool:
        return True

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        if placing.context.streams:
            number = min(placing.places)
            return placing.copy(placing.context.streams[0 if self.input else number if number in (1, 2) else 1])
        if self.input:
            return placing.open("/dev/null", os.O_RDONLY)
        if placing.context.stdio is None:
            return placing.open("/dev/null", os.O_WRONLY)
        return placing.open(placing.context.stdio, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

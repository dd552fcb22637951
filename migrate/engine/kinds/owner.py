"""Who gets SIGIO for a descriptor (fcntl(2): F_SETOWN_EX, F_SETSIG, O_ASYNC)."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import F_SETOWN_EX, F_SETSIG, file_owner
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.status import status
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import F_SETFL, SETTABLE, Placing

F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP = 0, 1, 2


@dataclass(frozen=True)
class Owner:
    """``number`` of a thread or process, as it calls itself; 0 for none. ``signal``: 0 for SIGIO."""

    kind: int
    number: int
    signal: int

    @classmethod
    def dump(cls, file: OpenFile) -> Owner | None:
        """None where there is nothing to restore, which is nearly always. Of one outside of the process: a problem."""
        with file.duplicate() as fd:
            kind, number, signal = file_owner(fd)
        if not number and not signal and not file.flags & os.O_ASYNC:
            return None
        if file.format == stat.S_IFDIR:
            file.refuse("directory with notification by signal (F_NOTIFY)", "use inotify")
            return None
        proc = file.dump.proc
        if kind == F_OWNER_PGRP and number:
            file.refuse(f"descriptor whose SIGIO goes to process group {number}", "give it to the process (F_SETOWN)")
            return None
        if number and number not in proc.tids():
            file.refuse(f"descriptor whose SIGIO goes to process {number}", "give it to the process itself (F_SETOWN)")
            return None
        return cls(kind, _inside(proc, number) if number else 0, signal)

    def give(self, placing: Placing, number: int, flags: int) -> None:
        """Before O_ASYNC is set: from then on signals may come."""
        program, label = placing.program, f"{placing.label}: owner"
        if self.number:
            program.syscall(
                "fcntl", number, F_SETOWN_EX, program.data(struct.pack("<ii", self.kind, self.number)), label=label
            )
        if self.signal:
            program.syscall("fcntl", number, F_SETSIG, self.signal, label=label)
        if flags & os.O_ASYNC:
            program.syscall("fcntl", number, F_SETFL, flags & (SETTABLE | os.O_ASYNC), label=label)


def _inside(proc: Proc, tid: int) -> int:
    """The number of a thread in its own PID namespace."""
    return status(proc.text(f"task/{tid}/status")).ns_pid[-1]

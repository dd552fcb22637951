"""Record locks (POSIX, OFD) and flock locks that the process holds (fcntl(2), flock(2), proc_locks(5)).

On a file system that both hosts share, the source's locks would stand in the way of its own successor: so they are
released there just before the destination takes them, and taken again if the move is called off. In between nobody
holds them; others can get in for as long as a hand-over takes, and then it fails and is rolled back."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from migrate.engine.kinds.opened import Key, OpenFile
from migrate.engine.program import Program

POSIX, OFD, FLOCK = "POSIX", "OFDLCK", "FLOCK"  # as the kernel writes them
F_SETLK, F_OFD_SETLK = 6, 37
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8
_FLOCK = struct.Struct("<hh4xqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


@dataclass(frozen=True)
class Lock:
    """``number``: a descriptor by which it can be had. ``end``: last byte, None for the end of the file, however it
    grows."""

    kind: str
    number: int
    write: bool
    start: int
    end: int | None

    @property
    def label(self) -> str:
        return f"fd {self.number}: {'write' if self.write else 'read'} lock ({self.kind})"

    def _range(self, type_: int) -> bytes:
        length = 0 if self.end is None else self.end - self.start + 1
        return _FLOCK.pack(type_, 0, self.start, length, 0)

    def take(self, program: Program) -> None:
        if self.kind == FLOCK:
            how = LOCK_EX if self.write else LOCK_SH
            program.syscall("flock", self.number, how | LOCK_NB, label=self.label)
        else:
            self._record(program, F_WRLCK if self.write else F_RDLCK)

    def release(self, program: Program) -> None:
        if self.kind == FLOCK:
            program.syscall("flock", self.number, LOCK_UN, label=self.label)
        else:
            self._record(program, F_UNLCK)

    def _record(self, program: Program, type_: int) -> None:
        command = F_SETLK if self.kind == POSIX else F_OFD_SETLK
        program.syscall("fcntl", self.number, command, program.data(self._range(type_)), label=self.label)


def dump(files: Iterable[OpenFile]) -> tuple[Lock, ...]:
    """All the locks of the process. Those of an open file description show at each; a POSIX lock belongs to the process
    and shows at every descriptor of its file, of which one must be open for what the lock is: reading or writing."""
    records: dict[tuple[Key, int, int | None, bool], tuple[OpenFile, bool]] = {}
    found: list[Lock] = []
    for file in files:
        for line in file.info.lines.get("lock", []):
            words = line.split()[1:]  # "1: POSIX  ADVISORY  WRITE 812 fe:00:2146398 5 14"
            kind, write = words[0], words[2] == "WRITE"
            if kind not in (POSIX, OFD, FLOCK):
                file.refuse(
                    f"{words[0].lower()} on {file.link}", "give the lease back (F_UNLCK)" if kind == "LEASE" else ""
                )
                continue
            start, end = int(words[5]), None if words[6] == "EOF" else int(words[6])
            if kind != POSIX:
                found.append(Lock(kind, file.numbers[0], write, start, end))
                continue
            fits = file.writes if write else file.reads
            place = (file.key, start, end, write)
            if place not in records or (fits and not records[place][1]):
                records[place] = (file, fits)
    for (_, start, end, write), (file, fits) in records.items():
        if not fits:
            need = "written" if write else "read"
            file.refuse(f"lock on {file.link}, which is no longer open for being {need}", "release the lock")
            continue
        found.append(Lock(POSIX, file.numbers[0], write, start, end))
    return tuple(found)


@dataclass(frozen=True)
class Held:
    """All of a process."""

    locks: tuple[Lock, ...]


def release(program: Program, locks: Sequence[Lock]) -> None:
    """Ops to be run in the stopped source process, right before the hand-over."""
    for lock in locks:
        lock.release(program)


def restore(program: Program, locks: Sequence[Lock]) -> None:
    """Ops that take them: in the restoree, or again in the source after a failure. In the restoree after everything
    that opens and closes files: closing any descriptor of a file drops the process's POSIX locks on it (fcntl(2))."""
    for lock in locks:
        lock.take(program)

"""One migration of a process at a time: a flock(2) of /proc/PID/mem.

The lock lies on an inode of procfs, which belongs to the process itself and not to its number, and is there for as long
as somebody has it open: so there is no file that could be left over or be planted, and a new process with an old number
is not locked. Who may not trace the process cannot open the file, and so cannot keep others from moving it; who may,
sees the lock of every other user. The kernel releases it when its holder ends, however that comes.

It does not reach from one mount of procfs to another, which has inodes of its own (Linux 5.8): between containers that
see one process, that it can have one tracer only must do.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from agents.journal import ID
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import Stat, stat
from migrate.errors import Problem, Refused

_LOCKS = Path("/proc/locks")
_HELPERS = ("sudo",)  # between a command and its agent


class Claim:
    """The exclusive right to move a process, until `close`."""

    def __init__(self, process: Proc) -> None:
        """Raises Refused, with who has it."""
        self._fd = process.open("mem")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Refused([claimed(process) or _being_moved(process.pid, "")]) from None

    def close(self) -> None:
        """Others may move it."""
        os.close(self._fd)


def claimed(process: Proc) -> Problem | None:
    """Whether somebody else has it."""
    found = process.stat("mem")
    # proc_locks(5): "1: FLOCK ADVISORY WRITE 1234 00:17:5678 0 EOF", the device in hexadecimal
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in _LOCKS.read_text().splitlines():
        fields = line.split()
        if "->" not in fields and fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) != os.getpid():
            return _being_moved(process.pid, _told(int(fields[4])))
    return None


def _being_moved(pid: int, by_whom: str) -> Problem:
    return Problem(f"process {pid}", f"it is being moved already{by_whom}", "wait for that, or interrupt it")


def _told(holder: int) -> str:
    """By which migration (its id is an argument of the source agent) and command, and since when; nothing where that
    cannot be seen (the holder is in another PID namespace, or has just ended)."""
    if holder <= 0:
        return ""
    try:
        its = _stat(holder)
        arguments = Path(f"/proc/{holder}/cmdline").read_bytes().split(b"\0")
        command = its.ppid
        while command > 1 and (above := _stat(command)).comm in _HELPERS:
            command = above.ppid
    except (FileNotFoundError, ProcessLookupError):
        return ""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    began = booted + its.starttime / os.sysconf("SC_CLK_TCK")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
    ids = list(filter(ID.fullmatch, (text.decode("ascii", "replace") for text in arguments)))
    migration = f", by migration {ids[0]} of" if ids else ", by"
    return f"{migration} process {command if command > 1 else holder} since {since}"


def _stat(pid: int) -> Stat:
    return stat(Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape"))

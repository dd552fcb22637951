"""Parser for /proc/sysvipc/{shm,sem,msg} (proc(5)): the System V objects of the IPC namespace of whoever opens it.

User and group ids are as the reader's user namespace has them, process ids as its PID namespace has (ipc/shm.c,
sysvipc_shm_proc_show() and its kin). Who reads it needs no right to the objects themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from migrate.engine.kernel.procformat import ProcFormatError

SHM_DEST, SHM_LOCKED = 0o1000, 0o2000  # in the mode of a segment: see shmctl(2)
KINDS = ("shm", "sem", "msg")


@dataclass(frozen=True)
class Listed:
    """One line. ``key`` is as in ftok(3), without sign; ``fields``: all of it, by the names of the first line."""

    key: int
    id: int
    mode: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    fields: dict[str, int]


def parse(kind: str, text: str) -> Iterator[Listed]:
    """``kind``: one of KINDS."""
    head, *lines = text.splitlines() or [""]
    names = head.split()
    number = f"{kind}id" if kind != "msg" else "msqid"
    if names[:3] != ["key", number, "perms"]:
        raise ProcFormatError(f"sysvipc/{kind}", f"no table: {head!r:.100}")
    for line in lines:
        words = line.split()
        if len(words) != len(names):
            raise ProcFormatError(f"sysvipc/{kind}", f"{len(words)} columns in {line!r:.100}")
        try:
            fields = {name: int(word, 8 if name == "perms" else 10) for name, word in zip(names, words, strict=True)}
            uid, gid, cuid, cgid = (fields[name] for name in ("uid", "gid", "cuid", "cgid"))
            yield Listed(fields["key"] & 0xFFFFFFFF, fields[number], fields["perms"], uid, gid, cuid, cgid, fields)
        except (KeyError, ValueError) as error:
            raise ProcFormatError(f"sysvipc/{kind}", f"{line!r:.100}: {error}") from error

"""Names of unix sockets (unix(7)): abstract ones, and those that are files.

A name is what bind(2) was given, and getsockname(2) tells it so for ever. So a socket whose name is a path is bound in
a directory that stands for the root, or for the current directory where the name was relative; then its file is put
where it belongs. That is done in the commit (`node.place`): on a shared file system the name leads to the socket of the
process here until then, as it must when all is called off.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from migrate.engine.kernel.fdcalls import O_PATH
from migrate.engine.kinds.node import AT_REMOVEDIR, Node, directories
from migrate.engine.kinds.placing import AT_FDCWD, Placing
from migrate.engine.program import Arg

AF_UNIX = 1
_PLACE = O_PATH | os.O_DIRECTORY
_ROOM = "/run"  # for names that lead to no file; nobody but root can make any there


@contextmanager
def bound(placing: Placing, number: int, name: bytes, node: Node | None = None) -> Iterator[tuple[Arg, int]]:
    """Give a socket its name; the address by which it can be connected to inside the block. Without ``node`` no file is
    left of it."""
    program, label = placing.program, f"{placing.label}: name"
    raw = struct.pack("<H", AF_UNIX) + name
    address: tuple[Arg, int] = program.data(raw), len(raw)
    if name.startswith(b"\0"):
        program.syscall("bind", number, *address, label=label)
        yield address
        return
    base = node.stage if node is not None else f"{_ROOM}/.migrate-{hashlib.blake2b(name, digest_size=8).hexdigest()}"
    there = None if node is not None else errno.EEXIST  # what is beside it may be anybody's
    program.syscall("mkdirat", AT_FDCWD, program.string(base), 0o700, label=label, errno_ok=there)
    home, stage = placing.open("/", _PLACE), placing.open(base, _PLACE | os.O_NOFOLLOW)
    # Inside, no name leads out of it, whoever has put what there.
    _enter(placing, stage, label)
    for directory in directories(name):
        program.syscall("mkdirat", AT_FDCWD, program.string(directory), 0o700, label=label, errno_ok=errno.EEXIST)
    path = program.string(name)
    program.syscall("unlinkat", AT_FDCWD, path, 0, label=label, errno_ok=errno.ENOENT)
    program.syscall("bind", number, *address, label=label)
    yield address
    if node is not None:
        program.syscall("fchmodat", AT_FDCWD, path, node.mode, label=label)
        program.syscall("fchownat", AT_FDCWD, path, node.uid, node.gid, 0, label=label)
    else:
        program.syscall("unlinkat", AT_FDCWD, path, 0, label=label)
        for directory in reversed(directories(name)):
            program.syscall("unlinkat", AT_FDCWD, program.string(directory), AT_REMOVEDIR, label=label)
    _enter(placing, home, label)
    if node is None:
        program.syscall("unlinkat", AT_FDCWD, program.string(base), AT_REMOVEDIR, label=label)
    for each in (stage, home):
        placing.close(each)


def _enter(placing: Placing, directory: int, label: str) -> None:
    """Root and current directory."""
    placing.program.syscall("fchdir", directory, label=label)
    placing.program.syscall("chroot", placing.program.string("."), label=label)

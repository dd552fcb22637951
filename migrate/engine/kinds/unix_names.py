"""Names of unix sockets (unix(7)): abstract ones, and those that are files.

A name is what bind(2) was given, and getsockname(2) tells it so for ever. So a socket whose name is a path is bound in
a directory that stands for the root, or for the current directory where the name was relative; then its file is put
where it belongs. That is done in the commit (`placings`): on a shared file system the name leads to the socket of the
process here until then, as it must when all is called off.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import O_PATH
from migrate.engine.kinds.placing import AT_FDCWD, Placing
from migrate.engine.program import Arg, Program

AF_UNIX, AT_REMOVEDIR = 1, 0x200
_PLACE = O_PATH | os.O_DIRECTORY
_ROOM = "/run"  # for names that lead to no file; nobody but root can make any there


@dataclass(frozen=True)
class Node:
    """The file of a socket. ``path``: from the root of the mount namespace; ``token``: makes the name of a directory
    that nobody else has made."""

    path: str
    mode: int
    uid: int
    gid: int
    token: str

    @property
    def stage(self) -> str:
        """A directory beside it: a file cannot be moved to another file system."""
        return os.path.join(os.path.dirname(self.path), f".migrate-{self.token}")


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
    for directory in _directories(name):
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
        for directory in reversed(_directories(name)):
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


def place(program: Program, name: bytes, node: Node) -> None:
    """Put the file of a socket where it belongs. In the commit, where nothing may fail any more."""
    label, base = f"name of the socket {node.path}", node.stage.encode("utf-8", "surrogateescape")
    staged = program.string(os.path.normpath(base + b"/" + name))
    program.syscall("renameat", AT_FDCWD, staged, AT_FDCWD, program.string(node.path), label=label, ignore=True)
    for directory in (*reversed([base + b"/" + each.lstrip(b"/") for each in _directories(name)]), base):
        program.syscall("unlinkat", AT_FDCWD, program.string(directory), AT_REMOVEDIR, label=label, ignore=True)


def _directories(name: bytes) -> list[bytes]:
    """Those that lead to a name, from the top; the root and the current one are there."""
    found = []
    at = os.path.dirname(os.path.normpath(name))
    while at not in (b"", b"/", b"."):
        found.append(at)
        at = os.path.dirname(at)
    return found[::-1]

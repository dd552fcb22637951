"""Files that are made on the destination under names that others find them by: of sockets, and of shared memory.

They are made beside their place, in a directory of their own, and moved there in the commit: until then, and when all
is called off, the name leads to what it led to.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import cache

from migrate.engine.program import Program

AT_FDCWD, AT_REMOVEDIR = -100, 0x200
RENAME_NOREPLACE = 1  # renameat2(2)


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

    @property
    def staged(self) -> str:
        """Where a file is made whose name is nothing but its path."""
        return os.path.join(self.stage, os.path.basename(self.path))

    @property
    def name(self) -> bytes:
        """Of such a one, for `place`."""
        return os.fsencode("/" + os.path.basename(self.path))


@cache
def token(dev: int, ino: int) -> str:
    """The same for all who have a file, as long as we live: no two migrations meet."""
    return secrets.token_hex(8)


def place(program: Program, name: bytes, node: Node, replace: bool) -> None:
    """Put it where it belongs. In the commit, where nothing may fail any more. ``replace``: what has the name by then;
    else it stays, and this one has none."""
    label, base = f"name {node.path}", node.stage.encode("utf-8", "surrogateescape")
    staged = program.string(os.path.normpath(base + b"/" + name))
    names = AT_FDCWD, staged, AT_FDCWD, program.string(node.path)
    program.syscall("renameat2", *names, 0 if replace else RENAME_NOREPLACE, label=label, ignore=True)
    if not replace:
        program.syscall("unlinkat", AT_FDCWD, staged, 0, label=label, ignore=True)
    for directory in (*reversed([base + b"/" + each.lstrip(b"/") for each in directories(name)]), base):
        program.syscall("unlinkat", AT_FDCWD, program.string(directory), AT_REMOVEDIR, label=label, ignore=True)


def discard(program: Program, node: Node) -> None:
    """One that has lost its name meanwhile. In the commit, too."""
    label = f"{node.path}, which is gone"
    program.syscall("unlinkat", AT_FDCWD, program.string(node.staged), 0, label=label, ignore=True)
    program.syscall("unlinkat", AT_FDCWD, program.string(node.stage), AT_REMOVEDIR, label=label, ignore=True)


def directories(name: bytes) -> list[bytes]:
    """Those that lead to a name, from the top; the root and the current one are there."""
    found = []
    at = os.path.dirname(os.path.normpath(name))
    while at not in (b"", b"/", b"."):
        found.append(at)
        at = os.path.dirname(at)
    return found[::-1]

"""Descriptors that wait in unix sockets to be received (SCM_RIGHTS, unix(7)): open file descriptions that a queue
holds, and perhaps nobody else.

Whoever looks at a queue (MSG_PEEK) gets descriptors of his own of them. We keep these for as long as it takes to tell
whether one of the processes has the same description: then that is sent once more. Of those that only a queue has, such
can be moved as can be opened again by a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.device import Device
from migrate.engine.kinds.directory import Directory, PlaceOnly
from migrate.engine.kinds.listing import one_file, same_among
from migrate.engine.kinds.opened import Dump, OpenFile
from migrate.engine.kinds.regular import Regular

ALONE = (Regular, Directory, PlaceOnly, Device)  # what may be open nowhere else


class Flying:
    """Those that were found while the sockets of one dump were read, by their positions."""

    def __init__(self) -> None:
        self.files: list[OpenFile] = []
        self._proc: Proc | None = None
        self._pidfd = -1

    def add(self, fd: int, carrier: OpenFile) -> int:
        """``fd``: of ours, and closed by us in the end; ``carrier``: the socket. Its position."""
        if self._proc is None:
            self._proc, self._pidfd = Proc(os.getpid()), os.pidfd_open(os.getpid())
        dump = Dump(self._proc, self._pidfd, carrier.dump.options)
        dump.prefix, dump.mounts = carrier.dump.prefix, carrier.dump.mounts
        file = one_file(dump, fd)
        file.carrier = carrier
        self.files.append(file)
        return len(self.files) - 1

    def firsts(self, files: Iterable[OpenFile]) -> list[OpenFile]:
        """For each the one of ``files``, or of these here, that is the first of its description."""
        if not self.files:
            return []
        same = same_among([*files, *self.files])
        return [same.get(id(file), file) for file in self.files]

    def close(self) -> None:
        for file in self.files:
            os.close(file.numbers[0])
        self.files.clear()
        if self._proc is not None:
            self._proc.close()
            os.close(self._pidfd)
            self._proc = None


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

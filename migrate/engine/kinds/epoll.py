"""epoll(7): which descriptors it watches, for what, and the word that comes back with each event.

What is ready is not kept: adding a descriptor looks at it anew, so an edge that was already told is told once more,
which edge-triggered programs have to stand anyway (epoll(7)). A one-shot watch that has fired keeps telling of
errors and hang-ups, because EPOLL_CTL_ADD always asks for these (do_epoll_ctl(), fs/eventpoll.c)."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kernel.fdcalls import epoll_watches
from migrate.engine.kernel.fdinfo import pairs
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import Placing

EPOLL_CTL_ADD = 1


@dataclass(frozen=True)
class Watch:
    """``target``: a descriptor of the process. ``data``: the user's word (unsigned)."""

    target: int
    events: int
    data: int


@dataclass(frozen=True)
class Epoll:
    watches: tuple[Watch, ...]

    applied: ClassVar[int] = 0

    @classmethod
    def dump(cls, file: OpenFile) -> Epoll | None:
        found, seen, lost = [], dict[int, int](), False
        for line in file.info.lines.get("tfd", []):
            fields = pairs(line)
            target = int(fields[""])
            nth = seen[target] = seen.get(target, -1) + 1
            if _is_still(file, target, nth):
                found.append(Watch(target, int(fields["events"], 16), int(fields["data"], 16)))
                continue
            lost = True
            file.refuse(
                f"epoll that still watches what was descriptor {target} (inode {int(fields.get('ino', '0'), 16)}), "
                "closed or replaced since, while a duplicate keeps it alive",
                "remove descriptors from an epoll before closing them",
            )
        return None if lost else cls(tuple(found))

    def still_good(self, file: OpenFile) -> bool:
        return False  # a target may have been closed and its number used again

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        return placing.call("epoll_create1", os.O_CLOEXEC)

    def watch(self, placing: Placing, number: int) -> None:
        """Once all the descriptors are in their places."""
        for watch in self.watches:
            event = placing.program.data(struct.pack("<IQ", watch.events, watch.data), align=4)
            label = f"{placing.label}: watch fd {watch.target}"
            placing.program.syscall("epoll_ctl", number, EPOLL_CTL_ADD, watch.target, event, label=label)


def _is_still(file: OpenFile, target: int, nth: int) -> bool:
    try:
        return epoll_watches(file.dump.pid, file.numbers[0], target, nth)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOENT):  # the number is free; or, in a process that runs, the watch went
            return False
        raise

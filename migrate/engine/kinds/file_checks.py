"""Questions that are asked of open files while they are read (`descriptor_reader`)."""

from __future__ import annotations

import os

from migrate.engine.kernel.fdcalls import O_PATH
from migrate.engine.kinds import named
from migrate.engine.kinds.descriptors import Description, Descriptor
from migrate.engine.kinds.epoll import Epoll
from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.mqueue import PosixQueue
from migrate.engine.kinds.node import Node
from migrate.engine.kinds.opened import Dump, OpenFile, key_of
from migrate.engine.kinds.pipe import is_pipe
from migrate.engine.kinds.stdio import StandardStream
from migrate.engine.kinds.terminal import MASTER, SLAVES


def check_watches(dump: Dump | None, descriptions: list[Description], descriptors: list[Descriptor]) -> None:
    """Files and null devices cannot be watched, and these are what streams become."""
    streams = {d.number for d in descriptors if isinstance(descriptions[d.description].state, StandardStream)}
    for descriptor in descriptors:
        state = descriptions[descriptor.description].state
        for watch in state.watches if isinstance(state, Epoll) else ():
            if watch.target in streams and dump is not None:
                what = f"epoll that watches descriptor {watch.target}, which leads outside"
                dump.refuse(f"fd {descriptor.number}", what)


def is_shareable(file: OpenFile) -> bool:
    """Whether another process that has it too would notice that it has gone. A regular file's offset is not counted:
    shells leave them shared, and look at them no more."""
    if file.flags & O_PATH:
        return False
    if file.stat.st_rdev == MASTER or os.major(file.stat.st_rdev) == SLAVES:
        return True
    if not file.link.startswith("/") or is_pipe(file) or file.stat.st_nlink == 0 or Memfd.is_one(file.link):
        return True
    return file.link.startswith(named.PLACE) or PosixQueue.is_one(file)


def node(file: OpenFile) -> Node | None:
    """Of shared memory with a name."""
    there = file.link.startswith(named.PLACE) and file.dump.leads_to(file.link, file.stat)
    return named.node_of(file.dump.proc, file.link, file.stat) if there else None


def unwritten(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether nobody has written to the file between two looks at it."""
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def is_still_there(file: OpenFile) -> bool:
    """Whether the number leads to what it led to."""
    try:
        return file.dump.proc.link(file.entry) == file.link and key_of(file.dump.proc.stat(file.entry)) == file.key
    except FileNotFoundError:
        return False

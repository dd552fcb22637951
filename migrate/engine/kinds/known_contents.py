"""Contents of files that travel, of which the last look is remembered: most are not written to between two dumps."""

from __future__ import annotations

import os
import time

from migrate.engine.kinds.deleted import DeletedFile
from migrate.engine.kinds.file_checks import node, unwritten
from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.named import NamedMemory
from migrate.engine.kinds.opened import Key, OpenFile
from migrate.errors import Problem

_QUIET_NS = 50_000_000  # older than this, a change that follows cannot have the same ctime (a tick is 10 ms at most)
Travels = Memfd | DeletedFile | NamedMemory


class KnownContents:
    """Of the files of one process."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[os.stat_result, int, Travels]] = {}  # and when it was read

    def of(self, file: OpenFile, room: int) -> Travels | Problem:
        """The file with its contents; those of the last dump where it was not written since. Writes through a shared
        mapping leave no time stamp, but such ranges travel with the memory (``DumpOptions.mapped``)."""
        known = self._known.get(file.key)
        if known is not None:
            before, read_at, made = known
            quiet = read_at - before.st_ctime_ns > _QUIET_NS
            if quiet and unwritten(before, file.stat) and file.key not in file.dump.options.mapped:
                if not isinstance(made, Memfd) or made.still_sealed_so(file.dump.proc, file.entry):
                    return made
        read_at = time.clock_gettime_ns(time.CLOCK_REALTIME)
        skip = file.dump.options.mapped.get(file.key, ())
        fresh: Travels | Problem
        there = node(file)
        if Memfd.is_one(file.link):
            fresh = Memfd.dump(file.dump.proc, file.entry, file.link, file.stat, skip, room)
        elif there is not None:
            fresh = NamedMemory.dump(file.dump.proc, file.entry, there, file.stat, skip, room)
        else:
            fresh = DeletedFile.dump(file.dump.proc, file.entry, file.link, file.stat, skip, room, file.flags)
        if not isinstance(fresh, Problem):
            self._known[file.key] = file.stat, read_at, fresh
        return fresh

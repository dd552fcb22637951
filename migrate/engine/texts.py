"""What /proc says of a process and of its threads while it stands still, from files that were opened before."""

from __future__ import annotations

from collections.abc import Sequence

from migrate.engine.kernel.buffers import address_of
from migrate.engine.kernel.held import MAYBE_MORE, HeldFiles
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds import task
from migrate.pie.calls import Calls

_STATUS = 4096  # bytes to read of a status at first


class Texts:
    """`task.PROCESS_FILES` and `task.OPTIONAL_FILES` of one process, `task.THREAD_FILES` of its threads. Close it after
    use."""

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._held: dict[int, HeldFiles] = {}

    def hold(self) -> None:
        """Open now what will be read in the frozen window."""
        for tid in self._proc.tids():
            try:
                self._files(tid)
            except FileNotFoundError:
                continue  # it has ended since it was listed

    def process(self) -> dict[str, bytes]:
        """Those of the process, by name."""
        return {name: self.read(self._proc.pid, name) for name in (*task.PROCESS_FILES, *task.OPTIONAL_FILES)}

    def read(self, tid: int, name: str) -> bytes:
        """One of them."""
        try:
            return self._files(tid).read(name)
        except ProcessLookupError:  # another thread has the number now
            self._held.pop(tid).close()
            return self._files(tid).read(name)

    def statuses(self, tids: Sequence[int]) -> dict[int, bytes]:
        """Of each of these threads. In one go: mostly each is there in one read."""
        room = bytearray(_STATUS * len(tids))
        places = range(address_of(room), address_of(room) + len(room), _STATUS)
        numbers = [self._files(tid).number("status") for tid in tids]
        calls = Calls()
        calls.add_table(len(tids), (NUMBERS["pread64"], numbers, places, _STATUS))
        found = {}
        for tid, start, size in zip(tids, range(0, len(room), _STATUS), calls.make(), strict=True):
            whole = 0 < size < MAYBE_MORE
            found[tid] = bytes(room[start : start + size]) if whole else self.read(tid, "status")
        return found

    def _files(self, tid: int) -> HeldFiles:
        held = self._held.get(tid)
        if held is None:
            if tid == self._proc.pid:
                held = HeldFiles(self._proc, task.PROCESS_FILES, task.OPTIONAL_FILES)
            else:
                with self._proc.thread(tid) as thread:
                    held = HeldFiles(thread, task.THREAD_FILES)
            self._held[tid] = held
        return held

    def close(self) -> None:
        while self._held:
            self._held.popitem()[1].close()

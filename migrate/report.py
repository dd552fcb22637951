"""What a migration tells at its end: one sentence for people, one object for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from migrate.wording import count, printable, seconds, size


@dataclass(frozen=True)
class Round:
    """One pass over the pages while the process runs."""

    pages: int  # sent in this round
    bytes_sent: int  # on the wire: after compression
    seconds: float
    dirty_pages_after: int  # written while the round lasted: what the next one has to send


@dataclass(frozen=True)
class Report:
    """How a migration went. What never came to be known is None."""

    ok: bool
    pid: int | None  # None: the command line did not say
    comm: str
    dest: str
    new_pid: int | None = None  # as the destination's own PID namespace shows it
    downtime_ms: float | None = None  # from the first thread stopped here to the last one released there
    total_s: float | None = None
    rounds: tuple[Round, ...] = ()
    bytes_sent: int = 0
    tracker: str | None = None
    vdso: str | None = None
    phases_ms: Mapping[str, float] = field(default_factory=dict)  # the parts of the downtime
    error: str | None = None
    stdio_log: str | None = None  # the file on the destination that took the place of streams that led outside
    notes: tuple[str, ...] = ()
    id: str | None = None  # of the migration, in the journals of both hosts
    processes: int = 1  # that were moved: the one that was named, and its descendants

    @property
    def who(self) -> str:
        """``812 (xz)``."""
        return subject(self.pid, self.comm)

    def sentence(self) -> str:
        """``moved 812 (xz) to node2 as pid 812: 3 rounds, 412 MiB sent in 1.9 s, down for 11.4 ms``."""
        if not self.ok:
            return f"{self.who} was not moved to {printable(self.dest)}: {self.error}"
        down = seconds((self.downtime_ms or 0) / 1000)
        who = self.who + (f" and {count(self.processes - 1, 'descendant')}" if self.processes > 1 else "")
        return (
            f"moved {who} to {printable(self.dest)} as pid {self.new_pid}: {count(len(self.rounds), 'round')}, "
            f"{size(self.bytes_sent)} sent in {seconds(self.total_s or 0)}, down for {down}"
        )

    def json(self) -> str:
        """One line, with the keys that the manual promises."""
        return json.dumps(
            {
                "ok": self.ok,
                "id": self.id,
                "pid": self.pid,
                "new_pid": self.new_pid,
                "processes": self.processes,
                "dest": self.dest,
                "downtime_ms": _rounded(self.downtime_ms),
                "total_s": _rounded(self.total_s),
                "rounds": [{**asdict(r), "seconds": _rounded(r.seconds)} for r in self.rounds],
                "bytes_sent": self.bytes_sent,
                "tracker": self.tracker,
                "vdso": self.vdso,
                "phases_ms": {name: _rounded(value) for name, value in self.phases_ms.items()},
                "error": self.error,
                "stdio_log": self.stdio_log,
            }
        )


def subject(pid: int | None, comm: str) -> str:
    """``812 (xz)``, or what is known of it."""
    return (str(pid) if pid is not None else "process") + (f" ({printable(comm)})" if comm else "")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

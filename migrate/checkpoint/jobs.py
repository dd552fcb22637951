"""What `migrate dump`, `migrate restore` and `migrate show` were asked for, and what they tell at their end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from migrate.report import subject
from migrate.wording import count, printable, seconds, size

STREAM = "-"  # in place of a directory


@dataclass(frozen=True)
class Dump:
    """``directory``: STREAM for standard output."""

    pid: int
    directory: str
    leave_running: bool = False
    track: bool = False
    max_downtime: float = 0.3  # seconds
    tracker: Literal["auto", "pagemap-scan", "soft-dirty", "digest"] = "auto"
    json: bool = False
    verbose: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Restore:
    """``directory``: STREAM for standard input. ``stdio``: standard streams are ours, and we wait for its end."""

    directory: str
    stdio: bool = False
    cpu_check: Literal["all", "xstate", "off"] = "all"
    no_clock: bool = False
    cgroup: str | None = None  # "keep", or the path of one; None: that of the command
    json: bool = False
    verbose: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Show:
    """Prints what a checkpoint holds."""

    directory: str
    json: bool = False
    verbose: int = 0
    quiet: bool = False


Job = Dump | Restore | Show


@dataclass(frozen=True)
class Outcome:
    """How a dump or a restore went. What never came to be known is None."""

    ok: bool
    done: str  # "dumped", "restored"
    directory: str  # of the checkpoint itself: of a series, the one that was written or read
    pid: int | None = None
    comm: str = ""
    processes: int | None = None  # it and its descendants
    new_pid: int | None = None  # as our PID namespace shows it
    leave_running: bool | None = None
    pages: int | None = None  # that the process has
    bytes: int | None = None  # written or read
    frozen_ms: float | None = None
    total_s: float | None = None
    phases_ms: Mapping[str, float] = field(default_factory=dict)
    stdio_log: str | None = None
    error: str | None = None
    overseer: int | None = None  # that has let it go, as our PID namespace shows it

    def sentence(self) -> str:
        """``dumped 812 (xz) to a: 31,002 pages, 121 MiB written in 0.4 s, stopped for 9.1 ms; it runs on``."""
        others = f" and {count(self.processes - 1, 'descendant')}" if self.processes and self.processes > 1 else ""
        who = subject(self.pid, self.comm) + others
        place = "standard output" if self.directory == STREAM else printable(self.directory)
        took = f"{count(self.pages or 0, 'page')}, {size(self.bytes or 0)}"
        within = seconds(self.total_s or 0.0)
        if self.done == "dumped":
            it, was = ("they", "were") if others else ("it", "was")
            ending = f"{it} run{'' if others else 's'} on" if self.leave_running else f"{it} {was} ended"
            frozen = seconds((self.frozen_ms or 0.0) / 1000)
            return f"dumped {who} to {place}: {took} written in {within}, stopped for {frozen}; {ending}"
        if self.directory == STREAM:
            place = "standard input"
        return f"restored {who} from {place} as pid {self.new_pid}: {took} read in {within}"

    def json(self) -> str:
        fields = {name: round(value, 6) if type(value) is float else value for name, value in asdict(self).items()}
        del fields["overseer"]
        fields["phases_ms"] = {name: round(value, 6) for name, value in self.phases_ms.items()}
        return json.dumps(fields)

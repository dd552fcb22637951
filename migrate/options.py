"""What the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Connection:
    """How to get to a destination."""

    dest: str  # as it was typed: see migrate.transport.target.parse
    port: int | None = None  # -p
    identities: tuple[str, ...] = ()  # -i
    ssh_config: str | None = None  # -F; "none": no configuration at all, as ssh has it
    jump: str | None = None  # -J: "user@host:port,…"
    sudo: bool = False


@dataclass(frozen=True)
class Inquiry:
    """`migrate status` and `migrate recover`."""

    verb: Literal["status", "recover"]
    connection: Connection | None = None  # status of that host too; recover goes where the migration went
    id: str | None = None  # of the migration to recover; None: all
    force: Literal["commit", "abort"] | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Options:
    """The command line, checked. None stands for what ssh_config or a probe decides."""

    pid: int
    dest: str  # as it was typed: see migrate.transport.target.parse
    port: int | None = None  # -p
    identities: tuple[str, ...] = ()  # -i
    ssh_config: str | None = None  # -F; "none": no configuration at all, as ssh has it
    jump: str | None = None  # -J: "user@host:port,…"
    sudo: bool = False
    max_downtime: float = 0.3  # seconds
    max_rounds: int = 30
    no_converge: Literal["stop", "continue"] = "stop"
    bandwidth: float | None = None  # bytes per second
    compress: Literal["auto", "none", "lz4"] = "auto"
    tracker: Literal["auto", "pagemap-scan", "soft-dirty", "digest"] = "auto"
    cpu_check: Literal["all", "xstate", "off"] = "all"
    no_clock: bool = False
    verify: bool = False
    reconnect_for: float = 60.0  # seconds
    cgroup: str | None = None  # "keep", or the path of one; None: that of the agent
    stdio: str | None = None  # None: a log file; "null": /dev/null; else a file on the destination
    log: str | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False

    @property
    def connection(self) -> Connection:
        """To the destination."""
        return Connection(self.dest, self.port, self.identities, self.ssh_config, self.jump, self.sudo)

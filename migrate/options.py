"""What the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    stdio: str | None = None  # None: a log file; "null": /dev/null; else a file on the destination
    log: str | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False

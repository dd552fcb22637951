"""What the user asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_DEST = re.compile(r"(?:(?P<user>.+)@)?(?:\[(?P<v6>[0-9a-fA-F:.%\w-]+)\]|(?P<host>[^@:\[\]]+))(?::(?P<port>[0-9]+))?")


@dataclass(frozen=True)
class Options:
    """The command line, checked. None stands for what ssh_config or a probe decides."""

    pid: int
    dest: str  # as it was typed
    host: str  # a name or address, or a Host of the ssh configuration
    user: str | None = None
    port: int | None = None
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
    stdio: str | None = None  # None: a log file; "null": /dev/null; else a file on the destination
    json: bool = False
    verbose: int = 0
    quiet: bool = False


def parse_destination(text: str) -> tuple[str | None, str, int | None]:
    """User, host and port of ``[user@]host[:port]``; an IPv6 address with a port stands in brackets.

    ValueError says what is wrong with it."""
    if text.count(":") > 1 and "[" not in text:  # a bare IPv6 address
        user, _, host = text.rpartition("@")
        return user or None, _checked(text, host), None
    match = _DEST.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not user@host, user@host:port or a Host of your ssh configuration")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{port} is not a port")
    return match["user"], _checked(text, match["v6"] or match["host"]), port


def _checked(text: str, host: str) -> str:
    if not host or host.startswith("-") or any(c.isspace() or not c.isprintable() for c in host):
        raise ValueError(f"{text!r} names no host")
    return host

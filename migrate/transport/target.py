"""Where to connect to, as users write it: ``host``, ``user@host``, ``user@host:port``, ``user@[2001:db8::1]:22``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from migrate.errors import UsageError


class Address(NamedTuple):
    """The parts of a destination; None where not said. ``host`` may be a Host of the user's ssh config."""

    user: str | None
    host: str
    port: int | None


@dataclass(frozen=True)
class Destination:
    """A destination and the options that ssh(1) has for it: -p, -i, -F, -J."""

    spec: str
    port: int | None = None
    identity: str | None = None
    config: str | None = None
    jump: str | None = None

    @property
    def address(self) -> Address:
        """The parts of it. Raises UsageError when it makes no sense."""
        user, host, port = parse(self.spec)
        return Address(user, host, self.port if self.port is not None else port)


def parse(spec: str) -> Address:
    """The parts of ``user@host:port``. A bare IPv6 address needs no brackets when no port follows."""
    user, at, rest = spec.removeprefix("ssh://").rstrip("/").rpartition("@")
    if at and not user:
        raise UsageError(f"{spec!r}: there is no user before the @")
    found = re.fullmatch(r"\[([^\]]+)\](?::(.*))?", rest)
    if found:
        host, port = found.groups()
    elif rest.count(":") == 1:
        host, port = rest.split(":")
    else:
        host, port = rest, None
    # A leading dash would be an option to a program that is given the name (ProxyCommand).
    if not host or host.startswith("-") or re.search(r"[\s'\"`$\\;&<>|()/]", host):
        raise UsageError(f"{spec!r} is not a destination: write host, user@host or user@host:port")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"{spec!r}: {port!r} is not a port")
    return Address(user or None, host, None if port is None else int(port))

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


# A name may be put into the command line of a ProxyCommand: there a dash would make it an option, and the rest of these
# would mean something to the shell.
_SHELL = re.compile(r"[\s'\"`$\\;&<>|(){}/]")


@dataclass(frozen=True)
class Destination:
    """A destination and the options that ssh(1) has for it: -p, -i, -F, -J."""

    spec: str
    port: int | None = None
    identities: tuple[str, ...] = ()
    config: str | None = None
    jump: str | None = None

    @property
    def address(self) -> Address:
        """The parts of it. Raises UsageError when it makes no sense."""
        user, host, port = parse(self.spec)
        return Address(user, host, self.port if self.port is not None else port)


def parse(spec: str) -> Address:
    """The parts of ``user@host:port``. A bare IPv6 address needs no brackets when no port follows.

    UsageError says what is wrong with it."""
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
    if not _is_name(host) or (user and not _is_name(user)):
        raise UsageError(f"{spec!r} is not a destination: write user@host, user@host:port or a Host of ~/.ssh/config")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise UsageError(f"{spec!r}: {port!r} is not a port")
    return Address(user or None, host, None if port is None else int(port))


def _is_name(text: str) -> bool:
    return bool(text) and text.isprintable() and not text.startswith("-") and not _SHELL.search(text)

"""Options of unix sockets (unix(7), socket(7)) that are not as in a new one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import lru_cache

from migrate.engine.kinds.unix import BUFFERS, SO_PASSCRED

SO_PEEK_OFF = 42
# Those that a unix socket heeds, and those that it merely remembers, by what they are called in asm-generic/socket.h
OPTIONS = {
    "SO_REUSEADDR": (2, 4), "SO_DONTROUTE": (5, 4), "SO_BROADCAST": (6, 4), "SO_KEEPALIVE": (9, 4),
    "SO_OOBINLINE": (10, 4), "SO_NO_CHECK": (11, 4), "SO_PRIORITY": (12, 4), "SO_LINGER": (13, 8),
    "SO_PASSCRED": (SO_PASSCRED, 4), "SO_RCVLOWAT": (18, 4), "SO_RCVTIMEO": (20, 16), "SO_SNDTIMEO": (21, 16),
    "SO_TIMESTAMP": (29, 4), "SO_PASSSEC": (34, 4), "SO_TIMESTAMPNS": (35, 4), "SO_MARK": (36, 4),
    "SO_TIMESTAMPING": (37, 4), "SO_RXQ_OVFL": (40, 4), "SO_WIFI_STATUS": (41, 4), "SO_PEEK_OFF": (SO_PEEK_OFF, 4),
    "SO_NOFCS": (43, 4), "SO_SELECT_ERR_QUEUE": (45, 4), "SO_BUSY_POLL": (46, 4), "SO_TIMESTAMP_NEW": (63, 4),
    "SO_TIMESTAMPNS_NEW": (64, 4), "SO_TIMESTAMPING_NEW": (65, 4), "SO_PREFER_BUSY_POLL": (69, 4),
    "SO_PASSPIDFD": (76, 4), "SO_PASSRIGHTS": (83, 4), "SO_INQ": (84, 4),
}  # fmt: skip


def changed_options(found: socket.socket) -> tuple[tuple[int, bytes], ...]:
    """(number, value as getsockopt(2) gives it), and the sizes of its buffers in any case."""
    usual = _usual(found.type)
    changed = [(number, value) for number, value in _all_options(found) if usual.get(number) != value]
    return (*changed, *((number, found.getsockopt(socket.SOL_SOCKET, number, 4)) for number in BUFFERS))


@lru_cache
def _usual(kind: int) -> dict[int, bytes]:
    with socket.socket(socket.AF_UNIX, kind) as fresh:
        return dict(_all_options(fresh))


def _all_options(found: socket.socket) -> Iterator[tuple[int, bytes]]:
    for number, size in OPTIONS.values():
        try:
            yield number, found.getsockopt(socket.SOL_SOCKET, number, size)
        except OSError:  # not known to this kernel
            continue

"""What is queued in unix sockets, looked at and left there.

It is looked at (MSG_PEEK), one message after the other where SO_PEEK_OFF makes that possible, with its sender noted
(SO_PASSCRED). Both options are the socket's, so they are changed only while its process stands still, and set back at
once.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from migrate.engine.kernel.fdcalls import before_last, pending_bytes
from migrate.engine.kernel.sockdiag import UnixShown
from migrate.engine.kinds.flying import Flying, close_all
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.unix import SO_PASSCRED, STREAM, Message, Sender
from migrate.engine.kinds.unix_options import SO_PEEK_OFF

CREDENTIALS = struct.Struct("=iII")
_SCM_PIDFD = 4
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_MESSAGE = 8 << 20  # bytes of one message
_CONTROL = 4096  # bytes of what comes with one; 253 descriptors are the most
READ_IT, CLOSE_IT, ACCEPT_IT = "let it be read first", "close it, or stop what uses it", "let it be accepted first"


class Unmovable(Exception):
    """What it is that cannot be moved, and what to do."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what, self.advice = what, advice

    def tell(self, file: OpenFile) -> None:
        file.refuse(self.what, self.advice, passing=self.advice in (READ_IT, ACCEPT_IT))


class Queues:
    """``own``: the number of each process that moves, as they number themselves. ``flying``: descriptors in them."""

    def __init__(self, own: Mapping[int, int]) -> None:
        self._own = own
        self.flying = Flying()

    def waiting(
        self, found: socket.socket, shown: UnixShown, carrier: OpenFile | None
    ) -> Iterator[tuple[Message, bytes]]:
        """And the names of who has sent them. ``carrier``: it may have descriptors in it."""
        left = pending_bytes(found.fileno())
        if not left if shown.kind == STREAM else not polls(found) & select.POLLIN:
            return
        with _changed(found, SO_PEEK_OFF, 0), _changed(found, SO_PASSCRED, 1):
            while left or shown.kind != STREAM:
                at, fds = found.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF), list[int]()
                try:
                    message = self._look(found, left if shown.kind == STREAM else _MESSAGE, fds)
                except BaseException:
                    close_all(fds)
                    raise
                if message is None:
                    return
                whole, name = message
                left -= len(whole.content)
                if not fds:
                    yield whole, name
                    continue
                if carrier is None:
                    close_all(fds)
                    what = "unix socket without a peer, with descriptors in it that wait to be received (SCM_RIGHTS)"
                    raise Unmovable(what, READ_IT)
                rights = tuple(self.flying.add(fd, carrier) for fd in fds)
                before = 0
                if shown.kind == STREAM:
                    found.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, at)
                    before = before_last(found.fileno(), len(whole.content))
                    found.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, at + len(whole.content))
                if before:
                    yield Message(whole.content[:before], whole.sender), name
                yield Message(whole.content[before:], whole.sender, rights), name

    def _look(self, found: socket.socket, size: int, fds: list[int]) -> tuple[Message, bytes] | None:
        """At the next message, or at what one sender has written to a stream; None at the end. Only what there is comes
        with a sender, if one that has not been noted. ``fds`` takes the descriptors that come with it."""
        try:
            content, control, flags, name = found.recvmsg(size, _CONTROL, _PEEK)
        except BlockingIOError:
            return None
        senders = [raw for _, kind, raw in control if kind == socket.SCM_CREDENTIALS]
        for _, kind, raw in control:
            if kind in (socket.SCM_RIGHTS, _SCM_PIDFD):  # copies of ours
                ours = struct.unpack(f"={len(raw) // 4}i", raw[: len(raw) & ~3])
                if kind == socket.SCM_RIGHTS:
                    fds += ours
                else:
                    close_all(ours)
        if flags & socket.MSG_CTRUNC:
            raise Unmovable("unix socket with more descriptors in it than we may have open", READ_IT)
        if flags & socket.MSG_TRUNC:
            raise Unmovable(f"unix socket with a message of more than {_MESSAGE >> 20} MiB in it", READ_IT)
        sent_by = name if isinstance(name, bytes) else os.fsencode(name or "")
        return (Message(content, self._sender(senders[0])), sent_by) if senders else None

    def _sender(self, raw: bytes) -> Sender | None:
        pid, uid, gid = CREDENTIALS.unpack_from(raw)
        if (pid, uid, gid) == (0, *_overflow()):
            return None
        if pid not in self._own:
            whose = f"process {pid}" if pid else "a process that we may not see"
            raise Unmovable(f"unix socket with a message of {whose} in it (SCMCREDENTIALS)", READ_IT)
        return Sender(self._own[pid], uid, gid)


@lru_cache
def _overflow() -> tuple[int, int]:
    """What stands for ids that there are not (user_namespaces(7))."""
    uid, gid = (int(Path(f"/proc/sys/kernel/overflow{name}").read_text()) for name in ("uid", "gid"))
    return uid, gid


@contextmanager
def borrowed(file: OpenFile) -> Iterator[socket.socket]:
    with file.duplicate() as fd:
        found = socket.socket(fileno=fd)
        try:
            yield found
        finally:
            found.detach()


@contextmanager
def _changed(found: socket.socket, option: int, value: int) -> Iterator[None]:
    before = found.getsockopt(socket.SOL_SOCKET, option)
    found.setsockopt(socket.SOL_SOCKET, option, value)
    try:
        yield
    finally:
        found.setsockopt(socket.SOL_SOCKET, option, before)


def polls(found: socket.socket) -> int:
    poll = select.poll()
    poll.register(found.fileno(), select.POLLIN | select.POLLPRI)
    return next((events for _, events in poll.poll(0)), 0)

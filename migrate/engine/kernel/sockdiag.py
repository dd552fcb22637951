"""What the kernel tells of unix sockets (sock_diag(7), UNIX_DIAG): who is whose peer, which /proc does not show.

Of one network namespace at a time: that in which the netlink socket was made."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import set_namespace
from migrate.engine.kernel.proc import Proc

CLOSED, LISTENING = 7, 10  # TCP_CLOSE (not connected), TCP_LISTEN of net/tcp_states.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLMSG_ERROR, _NLMSG_DONE, _NLM_F_REQUEST, _NLM_F_DUMP = 2, 3, 1, 0x300
_SHOW = 0x01 | 0x02 | 0x04 | 0x08 | 0x10  # UDIAG_SHOW_NAME, _VFS, _PEER, _ICONS, _RQLEN
_NAME, _VFS, _PEER, _ICONS, _RQLEN, _SHUTDOWN = 0, 1, 2, 3, 4, 6  # UNIX_DIAG_…
_CLONE_NEWNET = 0x40000000
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req
_MESSAGE = struct.Struct("=BBBBIII")  # unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_NO_COOKIE = 0xFFFF_FFFF
_ROOM = 1 << 15  # bytes; what the kernel gives at most in one answer


@dataclass(frozen=True)
class UnixShown:
    """``ino``: of the socket. ``peer``: of the other one's, 0 for one that nobody has open (closed, or not accepted
    yet), None without a peer. ``name``: sun_path, of an abstract one with its NUL. ``node``: inode and device (as the
    kernel numbers it) of the file that it is bound to. ``pending``: for a listening one, the inodes of sockets that
    wait to be accepted. ``queued``: bytes, or connections, to be read; ``backlog``: what listen(2) was given, where it
    listens. ``shutdown``: bits, 1 for reading and 2 for writing."""

    ino: int
    kind: int
    state: int
    peer: int | None
    name: bytes
    node: tuple[int, int] | None
    pending: tuple[int, ...]
    queued: int
    backlog: int
    shutdown: int


class UnixDiag:
    """Asks about the sockets of one network namespace."""

    def __init__(self) -> None:
        """Of that which the calling thread is in."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)

    @classmethod
    def of(cls, proc: Proc) -> UnixDiag:
        """Of the namespace that the process is in. OSError EPERM when we may not enter it, EOPNOTSUPP where the kernel
        cannot tell (CONFIG_UNIX_DIAG)."""
        theirs, ours = proc.stat("ns/net"), os.stat("/proc/self/ns/net")
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            return cls._probed()
        home, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), proc.open("ns/net")
        try:
            set_namespace(there, _CLONE_NEWNET)
            try:
                return cls._probed()
            finally:
                set_namespace(home, _CLONE_NEWNET)
        finally:
            os.close(there)
            os.close(home)

    @classmethod
    def _probed(cls) -> UnixDiag:
        """A kernel without the answers says ENOENT, as of a socket that is not there: so ask for one that is."""
        made = cls()
        with socket.socket(socket.AF_UNIX) as known:
            if made.ask(os.fstat(known.fileno()).st_ino) is None:
                made.close()
                raise OSError(errno.EOPNOTSUPP, "the kernel cannot tell of unix sockets (CONFIG_UNIX_DIAG)")
        return made

    def ask(self, ino: int) -> UnixShown | None:
        """About one; None when there is none with that inode in the namespace."""
        self._send(ino, 0)
        return next(self._answers(), None)

    def all(self) -> list[UnixShown]:
        """About every one that somebody has open."""
        self._send(0, _NLM_F_DUMP)
        return list(self._answers())

    def _send(self, ino: int, flags: int) -> None:
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _NO_COOKIE, ino, _SHOW, _NO_COOKIE, _NO_COOKIE)
        header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 0, 0)
        self._dumping = bool(flags)
        self._socket.send(header + request)

    def _answers(self) -> Iterator[UnixShown]:
        while True:
            data, at = self._socket.recv(_ROOM), 0
            while at + _HEADER.size <= len(data):
                size, kind, *_ = _HEADER.unpack_from(data, at)
                body, at = data[at + _HEADER.size : at + size], at + (size + 3 & ~3)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    if number == errno.ENOENT:
                        return
                    raise OSError(number, f"sock_diag: {os.strerror(number)}")
                yield _shown(body)
            if not self._dumping:
                return

    def close(self) -> None:
        self._socket.close()


def _shown(body: bytes) -> UnixShown:
    _, kind, state, _, ino, _, _ = _MESSAGE.unpack_from(body)
    found: dict[int, bytes] = {}
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(body):
        size, attribute = _ATTRIBUTE.unpack_from(body, at)
        if size < _ATTRIBUTE.size:
            break
        found[attribute] = body[at + _ATTRIBUTE.size : at + size]
        at += size + 3 & ~3
    pending = found.get(_ICONS, b"")
    queued, other = struct.unpack("=II", found[_RQLEN])
    return UnixShown(
        ino,
        kind,
        state,
        struct.unpack("=I", found[_PEER])[0] if _PEER in found else None,
        found.get(_NAME, b""),
        struct.unpack("=II", found[_VFS]) if _VFS in found else None,
        struct.unpack(f"={len(pending) // 4}I", pending),
        queued,
        other if state == LISTENING else 0,
        found.get(_SHUTDOWN, b"\0")[0],
    )

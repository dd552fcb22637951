"""Unix sockets (unix(7)) connected to each other, both ends together, with what is queued in them. As data, and
how they are made again; how they are read is in kinds/unix_reader.py, the others are in kinds/unix_single.py.

Order: the pair, what was queued (before anything forbids to send), then options and shutdowns, then the end that nobody
has any more is closed. Sockets get their names when all that were accepted under these have been connected anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from migrate.engine.kernel.prctl import PR_SET_SECUREBITS
from migrate.engine.kinds.credentials import SECBIT_NO_SETUID_FIXUP
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import Key
from migrate.engine.kinds.placing import Placing
from migrate.engine.kinds.unix_names import bound
from migrate.engine.program import Arg, Buffer, OpKind, Program

AF_UNIX, SOL_SOCKET, SCM_RIGHTS, SCM_CREDENTIALS = 1, 1, 1, 2
STREAM, DGRAM = 1, 2
SO_SNDBUF, SO_RCVBUF, SO_PASSCRED, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 7, 8, 16, 32, 33
BUFFERS = {SO_SNDBUF: SO_SNDBUFFORCE, SO_RCVBUF: SO_RCVBUFFORCE}
_MSG_DONTWAIT, _MSG_NOSIGNAL = 0x40, 0x4000
_LARGEST = 0x3FFF_FFFF
_NEW = os.O_CLOEXEC | os.O_NONBLOCK  # as SOCK_CLOEXEC and SOCK_NONBLOCK are defined
_SAME = (1 << 32) - 1  # an id that setresuid(2) leaves as it is


@dataclass(frozen=True)
class Sender:
    """As the receiver sees it (SCM_CREDENTIALS, SO_PEERCRED). ``pid``: as the processes number it, 0 for none of
    them."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Message:
    """``sender``: where the kernel has noted it, which it does only for who has asked for it (SO_PASSCRED). ``rights``:
    descriptors of who makes the socket, which go with it (SCM_RIGHTS), by their numbers there."""

    content: bytes
    sender: Sender | None
    rights: tuple[int, ...] = ()


NOBODY = Sender(0, 0, 0)


@dataclass(frozen=True)
class UnixEnd:
    """``waiting``: what it has not read yet; of a stream, in as few pieces as senders allow. ``options``: of
    setsockopt(2), those that are not as in a new socket. ``shutdown``: bits, 1 for reading and 2 for writing. ``open``:
    somebody has it. ``reset``: an ECONNRESET waits for it. ``name``: what it is bound to, as sun_path; of one that was
    accepted, what its listening socket is bound to. ``peer``: whom it sees as the other one (SO_PEERCRED), with the
    supplementary ``groups`` (SO_PEERGROUPS)."""

    key: Key
    open: bool
    name: bytes = b""
    peer: Sender = NOBODY
    groups: tuple[int, ...] = ()
    shutdown: int = 0
    reset: bool = False
    options: tuple[tuple[int, bytes], ...] = ()
    waiting: tuple[Message, ...] = ()


@dataclass(frozen=True)
class UnixPair:
    """Two sockets connected to each other: by socketpair(2), or, where one has a name, by connect(2) and accept(2)."""

    kind: int
    ends: tuple[UnixEnd, UnixEnd]

    @property
    def maker(self) -> int:
        """Who is to make it, if it is one of them: its number shows in the end that somebody has."""
        return next((end.peer.pid for end in self.ends if end.open and end.peer.pid), 0)

    @property
    def name(self) -> bytes:
        return self.ends[0].name or self.ends[1].name

    @property
    def key(self) -> Key:
        return self.ends[0].key

    @property
    def keys(self) -> tuple[Key, ...]:
        """Of its sockets, in the order in which `make` gives them."""
        return tuple(end.key for end in self.ends)

    @property
    def rights(self) -> tuple[int, ...]:
        """Those of all its messages: it can be filled when all descriptors are in their places."""
        return tuple(each for end in self.ends for message in end.waiting for each in message.rights)

    def with_rights(self, numbers: Mapping[int, int]) -> UnixPair:
        """The same, with these in the place of those that it has."""
        return replace(self, ends=(_renumbered(self.ends[0], numbers), _renumbered(self.ends[1], numbers)))

    @property
    def volume(self) -> int:
        """Bytes of contents."""
        return sum(len(message.content) for end in self.ends for message in end.waiting)

    def needs(self, where: str) -> list[FileNeed]:
        return []

    def make(self, placing: Placing) -> tuple[int, int]:
        """The ends, held; none of them blocks."""
        if self.name and self.kind != DGRAM:
            return self._connect(placing)
        seen = next(end for end in self.ends if end.open)
        with acting_as(placing, seen.peer, seen.groups):
            first, second = placing.sockets(AF_UNIX, self.kind)
        held = placing.hold(first), placing.hold(second)
        for end, number in zip(self.ends, held, strict=True):
            if end.name:
                with bound(placing, number, end.name):
                    pass
        return held

    def _connect(self, placing: Placing) -> tuple[int, int]:
        """By a listening socket of that name, which is there for a moment. Each end sees whom the other call was made
        by: the one that listens is seen by the one that connects."""
        at = 0 if self.ends[0].name else 1
        server, client = self.ends[at], self.ends[1 - at]
        listening = placing.hold(new_socket(placing, self.kind))
        connecting = placing.hold(new_socket(placing, self.kind))
        if client.name:
            with bound(placing, connecting, client.name):
                pass
        with bound(placing, listening, server.name) as address:
            with acting_as(placing, client.peer, client.groups):
                placing.program.syscall("listen", listening, 1, label=f"{placing.label}: made anew")
            with acting_as(placing, server.peer, server.groups):
                placing.program.syscall("connect", connecting, *address, label=f"{placing.label}: connected anew")
        accepted = placing.hold(placing.call("accept4", listening, 0, 0, _NEW))
        placing.drop(listening)
        return (accepted, connecting) if at == 0 else (connecting, accepted)

    def fill(self, placing: Placing, held: tuple[int, ...]) -> None:
        """What is queued, and all that it is besides."""
        label, whole = placing.label, all(end.open for end in self.ends)
        for end, other in zip(self.ends, reversed(held), strict=True):
            if end.waiting:
                enlarge(placing, other)
            for message in end.waiting:
                send(placing, other, message)
        for end, number in zip(self.ends, held, strict=True):
            give_all(placing, number, end.options)
            if end.shutdown and (whole or self.kind == DGRAM):  # else it comes by itself when the other one is closed
                placing.program.syscall("shutdown", number, end.shutdown - 1, label=f"{label}: shutdown")
        for position in (0, 1):
            self._part(placing, held, position)

    def _part(self, placing: Placing, held: tuple[int, ...], gone: int) -> None:
        """Close an end that nobody has. What it has not read is what resets the other one (unix_release_sock(),
        net/unix/af_unix.c)."""
        if self.ends[gone].open:
            return
        if self.ends[1 - gone].reset:
            send(placing, held[1 - gone], Message(b"\0", None))
        placing.drop(held[gone])


def _renumbered(end: UnixEnd, numbers: Mapping[int, int]) -> UnixEnd:
    waiting = (replace(each, rights=tuple(numbers[right] for right in each.rights)) for each in end.waiting)
    return replace(end, waiting=tuple(waiting))


def send(
    placing: Placing, number: int, message: Message, address: tuple[Arg, int] | None = None, by: str = ""
) -> None:
    """To who it is connected to, or to ``address``."""
    program, label, size = placing.program, f"{placing.label}: contents{by}", len(message.content)
    flags = _MSG_DONTWAIT | _MSG_NOSIGNAL
    content, (name, length) = program.data(message.content), address or (0, 0)
    if message.sender is None and not message.rights:
        program.syscall("sendto", number, content, size, flags, name, length, label=label, expect=size)
        return
    vector, parts = program.data(struct.pack("<QQ", 0, size), pointers={0: content}), b""
    if (who := message.sender) is not None:
        parts += struct.pack("<QiiiII4x", 28, SOL_SOCKET, SCM_CREDENTIALS, who.pid, who.uid, who.gid)
        label += f" from pid {who.pid}"
    if message.rights:
        numbers = struct.pack(f"<{len(message.rights)}i", *message.rights)
        parts += struct.pack("<Qii", 16 + len(numbers), SOL_SOCKET, SCM_RIGHTS) + numbers + bytes(-len(numbers) % 8)
        label += f" with fd {', '.join(map(str, message.rights))}"
    control = program.data(parts)
    pointers = {16: vector, 32: control}
    if isinstance(name, Buffer):
        pointers[0] = name
    header = struct.pack("<QI4xQQQQi4x", 0, length, 0, 1, 0, control.size, 0)  # msghdr
    room = program.data(header, pointers=pointers)
    program.syscall("sendmsg", number, room, flags, label=label, expect=size)


def enlarge(placing: Placing, number: int) -> None:
    """Its buffer, so that all fits in that it has sent; what it is to be comes with its options."""
    size = struct.pack("<i", _LARGEST)
    _set(placing, number, SO_SNDBUF, size)
    _set(placing, number, SO_SNDBUFFORCE, size, ignore=True)


def give_all(placing: Placing, number: int, options: Sequence[tuple[int, bytes]]) -> None:
    for option, value in options:
        _give(placing, number, option, value)


def _give(placing: Placing, number: int, option: int, value: bytes) -> None:
    """An option; sizes of buffers are doubled by the kernel, and cut to a limit unless one has CAP_NET_ADMIN
    (socket(7))."""
    if option not in BUFFERS:
        _set(placing, number, option, value)
        return
    program, label = placing.program, f"{placing.label}: size of its buffer"
    half = struct.pack("<i", struct.unpack("<i", value)[0] // 2)
    _set(placing, number, option, half)
    _set(placing, number, BUFFERS[option], half, ignore=True)
    room, size = program.space(8), program.data(struct.pack("<I", 4))
    program.syscall("getsockopt", number, SOL_SOCKET, option, room, size, label=label)
    program.op(OpKind.CHECK, room, 0xFFFF_FFFF, struct.unpack("<I", value)[0], label=label)


def _set(placing: Placing, number: int, option: int, value: bytes, ignore: bool = False) -> None:
    program, label = placing.program, f"{placing.label}: option {option}"
    content = program.data(value)
    program.syscall("setsockopt", number, SOL_SOCKET, option, content, len(value), label=label, ignore=ignore)


@contextmanager
def acting_as(placing: Placing, who: Sender, groups: Sequence[int]) -> Iterator[None]:
    """As the user that is seen, as far as a socket takes note of him, but with root's capabilities; root again
    afterwards. (Credentials are restored later, all of them.)"""
    program: Program = placing.program
    if not who.uid and not who.gid and not groups:
        yield
        return
    label = f"{placing.label}: its user"
    listed = program.data(struct.pack(f"<{len(groups)}I", *groups)) if groups else 0
    program.syscall("prctl", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0, label=label)
    program.syscall("setgroups", len(groups), listed, label=label)
    program.syscall("setresgid", _SAME, who.gid, _SAME, label=label)
    program.syscall("setresuid", _SAME, who.uid, _SAME, label=label)
    yield
    program.syscall("setresuid", _SAME, 0, _SAME, label=label)
    program.syscall("setresgid", _SAME, 0, _SAME, label=label)


def new_socket(placing: Placing, kind: int) -> int:
    """Close-on-exec and non-blocking."""
    return placing.call("socket", AF_UNIX, kind | _NEW, 0)

"""Connected unix sockets (unix(7)), both ends together, with what is queued in them: as data, and how they are made
again. How they are read is in kinds/unix_reader.py.

Order: the pair, what was queued (before anything forbids to send), then options and shutdowns, then the end that nobody
has any more is closed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import Key
from migrate.engine.kinds.placing import Placing
from migrate.engine.program import OpKind, Program

AF_UNIX, SOL_SOCKET, SCM_CREDENTIALS = 1, 1, 2
STREAM, DGRAM = 1, 2
SO_SNDBUF, SO_RCVBUF, SO_PASSCRED, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 7, 8, 16, 32, 33
BUFFERS = {SO_SNDBUF: SO_SNDBUFFORCE, SO_RCVBUF: SO_RCVBUFFORCE}
_MSG_DONTWAIT, _MSG_NOSIGNAL = 0x40, 0x4000
_LARGEST = 0x3FFF_FFFF
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
    """``sender``: where the kernel has noted it, which it does only for who has asked for it (SO_PASSCRED)."""

    content: bytes
    sender: Sender | None


@dataclass(frozen=True)
class UnixEnd:
    """``waiting``: what it has not read yet; of a stream, in as few pieces as senders allow. ``options``: of
    setsockopt(2), those that are not as in a new socket. ``shutdown``: bits, 1 for reading and 2 for writing. ``open``:
    somebody has it. ``reset``: an ECONNRESET waits for it."""

    key: Key
    open: bool
    shutdown: int = 0
    reset: bool = False
    options: tuple[tuple[int, bytes], ...] = ()
    waiting: tuple[Message, ...] = ()


@dataclass(frozen=True)
class UnixPair:
    """Two sockets connected to each other. ``maker``: who is noted in both as the other one (SO_PEERCRED), with its
    supplementary ``groups`` (SO_PEERGROUPS)."""

    kind: int
    maker: Sender
    groups: tuple[int, ...]
    ends: tuple[UnixEnd, UnixEnd]

    @property
    def key(self) -> Key:
        return self.ends[0].key

    @property
    def volume(self) -> int:
        """Bytes of contents."""
        return sum(len(message.content) for end in self.ends for message in end.waiting)

    def needs(self, where: str) -> list[FileNeed]:
        return []

    def make(self, placing: Placing) -> tuple[int, int]:
        """The ends, held; none of them blocks."""
        with _acting_as(placing, self.maker, self.groups):
            first, second = placing.sockets(AF_UNIX, self.kind)
        return placing.hold(first), placing.hold(second)

    def fill(self, placing: Placing, held: tuple[int, int]) -> None:
        """What is queued, and all that it is besides."""
        label, whole = placing.label, all(end.open for end in self.ends)
        for end, other in zip(self.ends, reversed(held), strict=True):
            if end.waiting:
                size = struct.pack("<i", _LARGEST)
                _set(placing, other, SO_SNDBUF, size)
                _set(placing, other, SO_SNDBUFFORCE, size, ignore=True)
            for message in end.waiting:
                _send(placing, other, message)
        for end, number in zip(self.ends, held, strict=True):
            for option, value in end.options:
                _give(placing, number, option, value)
            if end.shutdown and (whole or self.kind == DGRAM):  # else it comes by itself when the other one is closed
                placing.program.syscall("shutdown", number, end.shutdown - 1, label=f"{label}: shutdown")
        for position in (0, 1):
            self._part(placing, held, position)

    def _part(self, placing: Placing, held: tuple[int, int], gone: int) -> None:
        """Close an end that nobody has. What it has not read is what resets the other one (unix_release_sock(),
        net/unix/af_unix.c)."""
        if self.ends[gone].open:
            return
        if self.ends[1 - gone].reset:
            _send(placing, held[1 - gone], Message(b"\0", None))
        placing.drop(held[gone])


def _send(placing: Placing, number: int, message: Message) -> None:
    program, label, size = placing.program, f"{placing.label}: contents", len(message.content)
    flags = _MSG_DONTWAIT | _MSG_NOSIGNAL
    content = program.data(message.content)
    if message.sender is None:
        program.syscall("sendto", number, content, size, flags, 0, 0, label=label, expect=size)
        return
    who = message.sender
    vector = program.data(struct.pack("<QQ", 0, size), pointers={0: content})
    control = program.data(struct.pack("<QiiiII4x", 28, SOL_SOCKET, SCM_CREDENTIALS, who.pid, who.uid, who.gid))
    header = struct.pack("<QI4xQQQQi4x", 0, 0, 0, 1, 0, control.size, 0)  # msghdr
    room = program.data(header, pointers={16: vector, 32: control})
    program.syscall("sendmsg", number, room, flags, label=f"{label} from pid {who.pid}", expect=size)


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
def _acting_as(placing: Placing, who: Sender, groups: Sequence[int]) -> Iterator[None]:
    """As that user, as far as a socket takes note of him; root again afterwards. (Credentials are restored later, all
    of them.)"""
    program: Program = placing.program
    if not who.uid and not who.gid and not groups:
        yield
        return
    label = f"{placing.label}: its user"
    listed = program.data(struct.pack(f"<{len(groups)}I", *groups)) if groups else 0
    program.syscall("setgroups", len(groups), listed, label=label)
    program.syscall("setresgid", _SAME, who.gid, _SAME, label=label)
    program.syscall("setresuid", _SAME, who.uid, _SAME, label=label)
    yield
    program.syscall("setresuid", _SAME, 0, _SAME, label=label)
    program.syscall("setresgid", _SAME, 0, _SAME, label=label)

"""Unix sockets (unix(7)) that are not connected, together with those that call them: who waits to be accepted, and
datagram sockets that are connected to one which is not connected to them.

All of these are made by one process, because whom they call has its name, as long as nobody else may find it by that,
only for a moment (`unix_names.bound`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from migrate.engine.kinds.needs import DIRECTORY, FileNeed
from migrate.engine.kinds.node import Node
from migrate.engine.kinds.opened import Key
from migrate.engine.kinds.placing import Placing
from migrate.engine.kinds.unix import (
    DGRAM,
    Message,
    Sender,
    UnixEnd,
    acting_as,
    enlarge,
    give_all,
    new_socket,
    send,
)
from migrate.engine.kinds.unix_names import bound
from migrate.engine.program import Arg

STRANGER, ITSELF = -1, -2


@dataclass(frozen=True)
class Caller:
    """A socket that is connected to the other one, which is not connected to it: a datagram socket, or one that waits
    to be accepted, and has sent nothing yet. ``who``, ``groups``: of the latter, whom the other end will see. The
    kernel has noted it, and tells nobody before that end is accepted, so it is the user of who has the socket."""

    end: UnixEnd
    who: Sender
    groups: tuple[int, ...]
    node: Node | None = None


@dataclass(frozen=True)
class Datagram:
    """``by``: the position of the caller that has sent it, ITSELF, or STRANGER: who had this ``name``, or none."""

    message: Message
    by: int
    name: bytes = b""


@dataclass(frozen=True)
class UnixSocket:
    """``backlog``: of listen(2), -1 where it does not listen; ``peer``, ``groups``: as whom who connects sees it;
    ``callers``: of those that wait to be accepted the first one first. ``node``: the file that its name leads to, with
    its owner and mode, or None. ``waiting``: datagrams that it has not read yet. ``loops``: connected to itself."""

    key: Key
    kind: int
    name: bytes
    node: Node | None
    backlog: int
    peer: Sender
    groups: tuple[int, ...]
    shutdown: int
    options: tuple[tuple[int, bytes], ...]
    callers: tuple[Caller, ...] = ()
    waiting: tuple[Datagram, ...] = ()
    loops: bool = False

    @property
    def maker(self) -> int:
        """Of one that is waited for, who has the first that waits: its number is what is seen when that is accepted."""
        return self.callers[0].who.pid if self.callers else 0

    @property
    def keys(self) -> tuple[Key, ...]:
        """Of its sockets, in the order in which `make` gives them."""
        return self.key, *(caller.end.key for caller in self.callers)

    @property
    def nodes(self) -> tuple[tuple[bytes, Node], ...]:
        """Names with files, which the commit puts in their places."""
        named = [(self.name, self.node), *((caller.end.name, caller.node) for caller in self.callers)]
        return tuple((name, node) for name, node in named if node is not None)

    @property
    def volume(self) -> int:
        """Bytes of contents."""
        mine = sum(len(datagram.message.content) for datagram in self.waiting)
        return mine + sum(len(each.content) for caller in self.callers for each in caller.end.waiting)

    def needs(self, where: str) -> list[FileNeed]:
        return [FileNeed(where, os.path.dirname(node.path), DIRECTORY) for _, node in self.nodes]

    def make(self, placing: Placing) -> tuple[int, ...]:
        """Held."""
        return tuple(placing.hold(new_socket(placing, self.kind)) for _ in self.keys)

    def fill(self, placing: Placing, held: tuple[int, ...]) -> None:
        """All that they are. Names come when those connections are made that were accepted under them."""
        number, *calling = held
        for caller, each in zip(self.callers, calling, strict=True):
            self._name_caller(placing, caller, each, number)
        if self.name:
            strangers = self._strangers(placing)
            with bound(placing, number, self.name, self.node) as address:
                # What is accepted inherits options ("af_unix: Inherit sk_flags at connect().", Linux 6.16).
                give_all(placing, number, self.options if self.kind != DGRAM else ())
                self._listen(placing, number, max(self.backlog, len(self.callers)))  # it may have been made smaller
                self._fill_queue(placing, held, address, strangers)
                self._connect(placing, number, calling, address)
            for stranger in set(strangers.values()):
                placing.drop(stranger)
        give_all(placing, number, self.options)
        if len(self.callers) > self.backlog:
            self._listen(placing, number, self.backlog)
        if self.shutdown:
            placing.program.syscall("shutdown", number, self.shutdown - 1, label=f"{placing.label}: shutdown")
        for caller, each in zip(self.callers, calling, strict=True):
            give_all(placing, each, caller.end.options)
            if caller.end.shutdown:
                how = caller.end.shutdown - 1
                placing.program.syscall("shutdown", each, how, label=f"{placing.label}: shutdown of a caller")

    def _name_caller(self, placing: Placing, caller: Caller, each: int, called: int) -> None:
        """And what it has been sent: nobody could but the one that it calls."""
        if not caller.end.name:
            return
        with bound(placing, each, caller.end.name, caller.node) as address:
            if caller.end.waiting:
                enlarge(placing, called)
            for message in caller.end.waiting:
                send(placing, called, message, address)

    def _strangers(self, placing: Placing) -> dict[bytes, int]:
        """Sockets, by their names, that take the place of those that have sent something and are not among these."""
        found: dict[bytes, int] = {}
        for datagram in self.waiting:
            if datagram.by == STRANGER and datagram.name not in found:
                found[datagram.name] = placing.hold(new_socket(placing, self.kind))
                enlarge(placing, found[datagram.name])
                if datagram.name:
                    with bound(placing, found[datagram.name], datagram.name):
                        pass
        return found

    def _fill_queue(
        self, placing: Placing, held: Sequence[int], address: tuple[Arg, int], strangers: dict[bytes, int]
    ) -> None:
        """Before any of them is connected: then everybody may send to everybody."""
        for by in {datagram.by for datagram in self.waiting} - {STRANGER}:
            enlarge(placing, held[0 if by == ITSELF else by + 1])
        for datagram in self.waiting:
            by = datagram.by
            sender = strangers[datagram.name] if by == STRANGER else held[0 if by == ITSELF else by + 1]
            send(placing, sender, datagram.message, address)

    def _connect(self, placing: Placing, number: int, calling: Sequence[int], address: tuple[Arg, int]) -> None:
        for caller, each in zip(self.callers, calling, strict=True):
            with acting_as(placing, caller.who, caller.groups):
                placing.program.syscall("connect", each, *address, label=f"{placing.label}: a caller")
        if self.loops:
            placing.program.syscall("connect", number, *address, label=f"{placing.label}: to itself")

    def _listen(self, placing: Placing, number: int, backlog: int) -> None:
        if self.backlog < 0:
            return
        with acting_as(placing, self.peer, self.groups):
            placing.program.syscall("listen", number, backlog, label=f"{placing.label}: listens")

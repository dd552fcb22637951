"""Reads unix sockets from outside: who is connected to whom, and what is queued, which stays in the queue
(`unix_queue`)."""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import struct
from collections.abc import MutableMapping, Sequence

from migrate.engine.kernel.fdcalls import unsent_bytes
from migrate.engine.kernel.sockdiag import LISTENING, UnixDiag, UnixShown
from migrate.engine.kernel.status import status
from migrate.engine.kinds import outside
from migrate.engine.kinds.listing import went_away
from migrate.engine.kinds.node import Node
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.unix import (
    DGRAM,
    NOBODY,
    STREAM,
    Message,
    Sender,
    UnixEnd,
    UnixPair,
)
from migrate.engine.kinds.unix_options import changed_options
from migrate.engine.kinds.unix_queue import (
    ACCEPT_IT,
    CLOSE_IT,
    CREDENTIALS,
    READ_IT,
    Queues,
    Unmovable,
    borrowed,
    polls,
)
from migrate.engine.kinds.unix_single import ITSELF, STRANGER, Caller, Datagram, UnixSocket
from migrate.wording import printable

SO_GET_FILTER, SO_PEERGROUPS = 26, 59
_SOCKET = socket.SOL_SOCKET
_GROUPS = 65536  # NGROUPS_MAX


class UnixReader:
    """The unix sockets among the files of one dump, which are those of all processes that move together."""

    def __init__(self, files: Sequence[OpenFile], known: Known, frozen: bool) -> None:
        self._known, self._frozen = known, frozen
        self._own = {file.dump.pid: file.dump.own_pid for file in files}
        self._queues = Queues(self._own)
        self.flying = self._queues.flying
        self._files: dict[int, OpenFile] = {}
        self._refused: set[int] = set()
        for file in files:
            try:
                with borrowed(file) as found:
                    if found.family == socket.AF_UNIX:
                        self._files.setdefault(file.key[1], file)
            except OSError as error:
                if frozen or not went_away(error):
                    raise
        self._shown: dict[int, UnixShown] = {}
        self._pending: dict[int, int] = {}  # who waits to be accepted, and by which one of ours
        self._hub: dict[int, int] = {}  # these, and datagram sockets that are connected one way: and to which one
        self._waiting_outside: set[int] = set()
        self._trouble = ""
        if self._files:
            try:
                self._ask(next(iter(self._files.values())))
            except OSError as error:
                self._trouble = error.strerror or str(error)

    def _ask(self, one: OpenFile) -> None:
        """The kernel; all of them are in one network namespace."""
        diag = UnixDiag.of(one.dump.proc)
        try:
            found = [shown for ino in self._files if (shown := diag.ask(ino)) is not None]
            self._shown = {shown.ino: shown for shown in found}
            self._pending = {ino: shown.ino for shown in found for ino in shown.pending}
            if any(shown.peer == 0 and shown.kind != DGRAM for shown in found):
                self._waiting_outside = {ino for shown in diag.all() for ino in shown.pending} - self._pending.keys()
            self._hub = {ino: hub for ino, hub in self._pending.items() if ino in self._files}
            for shown in found:
                called = self._shown.get(shown.peer or 0)
                if called is not None and called.ino != shown.ino and called.peer in (None, called.ino) and called.name:
                    self._hub[shown.ino] = called.ino
        finally:
            diag.close()

    def leading_outside(self, file: OpenFile) -> str | None:
        """What it is, in words, unless it leads to none but the processes that move."""
        ino = file.key[1]
        shown = self._shown.get(ino)
        if ino not in self._files:
            return "socket"
        if self._trouble:
            return f"unix socket ({self._trouble})"
        if shown is None:
            return "unix socket of another network namespace"
        if shown.peer is None:
            return None
        if not shown.peer:
            outside = self._waits(shown) and ino not in self._pending
            return "unix socket that another process has not accepted yet" if outside else None
        if shown.peer in self._shown:
            if self._shown[shown.peer].peer == ino or ino in self._hub:
                return None
            without = "has no name" if self._shown[shown.peer].peer is None else "is connected to another one"
            return f"unix socket connected to one that is not connected to it and {without}"
        who = self._known.holders(shown.peer)
        whose = "process " + ", ".join(map(str, who[:3])) if who else "a process that we may not see"
        return f"unix socket to {whose}"

    def _waits(self, shown: UnixShown) -> bool:
        """Whether it waits to be accepted: who has lost its peer is shut down by that (unix_release_sock(),
        net/unix/af_unix.c), and so may be who waits."""
        waiting = shown.ino in self._pending or shown.ino in self._waiting_outside
        return shown.kind != DGRAM and (shown.shutdown != 3 or waiting)

    def dump(self, file: OpenFile) -> UnixPair | UnixSocket | None:
        """The socket, with its peer; None when there was something about one of them that is refused."""
        ino = file.key[1]
        if ino in self._refused:
            return None
        if ino in self._hub:
            ino = self._hub[ino]
            file = self._files[ino]
        if self._shown[ino].peer in (None, ino):
            return self._single(file, self._shown[ino])
        inos = sorted({ino, self._shown[ino].peer or ino})
        ends = []
        for each in inos:
            try:
                ends.append(self._end(self._files[each], self._shown[each]))
            except Unmovable as reason:
                reason.tell(self._files[each])
        if len(ends) < len(inos):
            self._refused.update(inos)
            return None
        if len(ends) == 1:
            with borrowed(file) as found:
                ends.append(UnixEnd((file.key[0], 0), False, os.fsencode(found.getpeername())))
        return UnixPair(self._shown[ino].kind, (ends[0], ends[1]))

    def _single(self, file: OpenFile, shown: UnixShown) -> UnixSocket | None:
        listens, calling = shown.state == LISTENING, [ino for ino, hub in self._hub.items() if hub == shown.ino]
        found: list[Caller] = []
        problems = len(self._refused)
        try:
            with borrowed(file) as ours:
                self._check(file, shown, ours)
                if listens and len(calling) < max(len(shown.pending), shown.queued):
                    whose = "that are closed by now" if 0 in shown.pending else "of another process"
                    raise Unmovable(f"unix socket with connections {whose}, not accepted yet", ACCEPT_IT)
                peer, groups = self._peer(ours) if listens else (NOBODY, ())
                backlog, options = shown.backlog if listens else -1, changed_options(ours)
            name, node = _name(shown.name), self._node(file, shown)
            for ino in calling:
                try:
                    found.append(self._caller(self._files[ino], self._shown[ino]))
                except Unmovable as reason:
                    reason.tell(self._files[ino])
                    self._refused.add(ino)
            waiting = self._datagrams(file, shown, found) if self._frozen and shown.kind == DGRAM else ()
        except Unmovable as reason:
            reason.tell(file)
            self._refused.add(shown.ino)
        if len(self._refused) > problems:
            self._refused.update((shown.ino, *calling))
            return None
        return UnixSocket(
            *(file.key, shown.kind, name, node, backlog, peer, groups, shown.shutdown, options),
            *(tuple(found), waiting, shown.peer == shown.ino),
        )

    def _caller(self, file: OpenFile, shown: UnixShown) -> Caller:
        end, node = self._end(file, shown), self._node(file, shown)
        if shown.kind == DGRAM:
            return Caller(end, NOBODY, (), node)
        with borrowed(file) as found:
            if unsent_bytes(found.fileno()):  # which cannot be looked at: nobody has the end that it went to
                what = "unix socket that has sent something over a connection that has not been accepted yet"
                raise Unmovable(what, ACCEPT_IT)
        lines = status(file.dump.proc.text("status"))
        return Caller(end, Sender(file.dump.own_pid, lines.uids[1], lines.gids[1]), lines.groups, node)

    def _datagrams(self, file: OpenFile, shown: UnixShown, callers: Sequence[Caller]) -> tuple[Datagram, ...]:
        """Who has sent them shows by name; one without a name may have been any that has none."""
        names = {_name(shown.name): ITSELF} if shown.peer == shown.ino else {}
        for position, caller in enumerate(callers):
            names.setdefault(caller.end.name, position)
        found = []
        with borrowed(file) as ours:
            for message, name in self._queues.waiting(ours, shown, None):
                by = names.get(name, STRANGER)
                if by == STRANGER and name.startswith(b"\0"):
                    whose = f"unix socket with a datagram from {printable(os.fsdecode(name[1:]))}"
                    raise Unmovable(f"{whose}, an abstract name, which is not connected to it", READ_IT)
                found.append(Datagram(message, by, name if by == STRANGER else b""))
        if all(datagram.by != STRANGER for datagram in found):
            everything = [datagram.message for datagram in found]
            everything += [message for caller in callers for message in caller.end.waiting]
            self._check_all(everything, shown, [shown.ino, *(caller.end.key[1] for caller in callers)])
        return tuple(found)

    def _node(self, file: OpenFile, shown: UnixShown) -> Node | None:
        """None as well where its name leads to another file, or to none: then nobody finds the socket by it."""
        if not shown.name or shown.name.startswith(b"\0"):
            return None
        proc, name = file.dump.proc, os.fsdecode(_name(shown.name))
        start = proc.link("root") if name.startswith("/") else proc.link("cwd")
        path = os.path.normpath(f"{start}/{name}")
        try:
            there = os.stat(file.dump.prefix + path, follow_symlinks=False)
        except OSError:
            there = None
        if there is not None and shown.node == (there.st_ino & 0xFFFF_FFFF, _device(there.st_dev)):
            token = self._known.tokens.setdefault(shown.ino, secrets.token_hex(8))
            return Node(path, there.st_mode & 0o7777, there.st_uid, there.st_gid, token)
        if not name.startswith("/"):
            what = f"unix socket whose name is relative ({printable(name)}), to another directory than the current one"
            raise Unmovable(what, CLOSE_IT)
        return None

    def _end(self, file: OpenFile, shown: UnixShown) -> UnixEnd:
        with borrowed(file) as found:
            self._check(file, shown, found)
            reset = bool(polls(found) & select.POLLERR)
            carrier = None if shown.ino in self._hub else file
            queue = list(self._queues.waiting(found, shown, carrier)) if self._frozen else []
            waiting = tuple(message for message, _ in queue)
            if shown.ino in self._hub:
                called = _name(self._shown[self._hub[shown.ino]].name)
                if any(name != called for _, name in queue):
                    what = "unix socket with datagrams in it that are not of the one which it is connected to"
                    raise Unmovable(what, READ_IT)
            elif self._frozen and shown.peer and shown.kind != STREAM:
                self._check_all(waiting, shown, [shown.peer])
            peer, groups = self._peer(found)
            name = _name(shown.name)
            return UnixEnd(file.key, True, name, peer, groups, shown.shutdown, reset, changed_options(found), waiting)

    def _check(self, file: OpenFile, shown: UnixShown, found: socket.socket) -> None:
        events = polls(found)
        if events & select.POLLPRI:
            raise Unmovable("unix socket with urgent data in it (MSG_OOB)", READ_IT)
        if events & select.POLLERR and (shown.peer or shown.kind == DGRAM or (shown.kind != STREAM and shown.queued)):
            raise Unmovable("unix socket with an error that has not been looked at", "let it be used once more")
        if found.getsockopt(_SOCKET, SO_GET_FILTER, 0):
            raise Unmovable("unix socket with a packet filter (SO_ATTACH_FILTER)", CLOSE_IT)

    def _check_all(self, waiting: Sequence[Message], shown: UnixShown, senders: Sequence[int]) -> None:
        """An empty message at which somebody has looked before is passed over by SO_PEEK_OFF from then on. But it takes
        room in the buffer of its sender; so compare with what the others take in that of another."""
        taken = 0
        for ino in senders:
            with borrowed(self._files[ino]) as sender:
                taken += unsent_bytes(sender.fileno())
        first, second = socket.socketpair(socket.AF_UNIX, shown.kind)
        with first, second:
            first.setsockopt(_SOCKET, socket.SO_SNDBUF, 1 << 30)
            for message in waiting if taken else ():
                try:
                    first.send(message.content, socket.MSG_DONTWAIT)
                except (BlockingIOError, OSError):  # more than a buffer of ours takes
                    return
            if taken != unsent_bytes(first.fileno()):
                raise Unmovable("unix socket with empty messages in it that have been looked at (MSG_PEEK)", READ_IT)

    # Who

    def _peer(self, found: socket.socket) -> tuple[Sender, tuple[int, ...]]:
        pid, uid, gid = CREDENTIALS.unpack(found.getsockopt(_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        try:
            groups = found.getsockopt(_SOCKET, SO_PEERGROUPS, 1024)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return NOBODY, ()  # nobody is noted: datagram sockets that were connected by connect(2)
        return Sender(self._own.get(pid, 0), uid, gid), struct.unpack(f"={len(groups) // 4}I", groups)

class Known:
    """What is remembered from one dump to the next. ``family``: of those that move."""

    def __init__(self, family: frozenset[int]) -> None:
        self.family = family
        self._holders: MutableMapping[int, list[int]] = {}
        self.tokens: dict[int, str] = {}  # see `Node`

    def holders(self, ino: int) -> list[int]:
        """Which others have the socket."""
        if not self._holders.get(ino):
            self._holders[ino] = outside.who_has(f"socket:[{ino}]", self.family)
        return self._holders[ino]


def _name(raw: bytes) -> bytes:
    """As bind(2) takes it: of a path without the NUL that the kernel puts behind it."""
    return raw if raw.startswith(b"\0") else raw.rstrip(b"\0")


def _device(number: int) -> int:
    """As the kernel keeps it (MKDEV)."""
    return os.major(number) << 20 | os.minor(number)

"""POSIX message queues (mq_overview(7)): a descriptor, and a name in the IPC namespace.

What is in a queue can only be received. So the process itself receives it and sends it back, in one program (`taken`),
while all that have the queue stand still: even if we were killed in the middle of it, the program comes to its end.
The messages come by priority, and oldest first among equals, so sent back in this order they lie as they did.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import O_LARGEFILE, mq_attributes
from migrate.engine.kinds.contents import Attributes
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import Key, OpenFile
from migrate.engine.kinds.placing import AT_FDCWD, Placing, flags_for_open
from migrate.engine.program import Program, Results

LIMIT = 8 << 20  # bytes of messages in a queue
_ATTRIBUTES = struct.Struct("<8q")  # struct mq_attr: flags, maxmsg, msgsize, curmsgs, reserved
_DELETED = " (deleted)"
_NOTIFY = re.compile(rb"NOTIFY_PID:(\d+)")


@dataclass(frozen=True)
class Letter:
    """A message."""

    priority: int
    content: bytes


@dataclass(frozen=True)
class PosixQueue:
    """``name``: without a slash; ``deleted``: mq_unlink(3); ``most``: messages that there may be, and ``largest``:
    bytes in one; ``count``: messages in it, which are ``letters`` once they have been read."""

    key: Key
    attributes: Attributes
    name: str
    deleted: bool
    most: int
    largest: int
    count: int
    letters: tuple[Letter, ...] = ()

    @staticmethod
    def is_one(file: OpenFile) -> bool:
        """Whether it is a queue: no path leads to it from the root, or one on a file system of queues does."""
        if file.format != stat.S_IFREG or not file.link.startswith("/"):
            return False
        mount = file.mount
        if mount is not None:
            return mount.fstype == "mqueue"
        if "/" in file.link[1:].removesuffix(_DELETED):
            return False
        with file.duplicate() as fd:
            return mq_attributes(fd) is not None

    @classmethod
    def dump(cls, file: OpenFile) -> PosixQueue | None:
        """Without what is in it."""
        name = os.path.basename(file.link.removesuffix(_DELETED))
        with file.duplicate() as fd:
            found = mq_attributes(fd)
        if found is None:
            raise OSError(errno.EBADF, f"{file.where} is no message queue any more")
        most, largest, count = found
        fd = file.dump.proc.open(file.entry)
        try:
            watcher = _NOTIFY.search(os.pread(fd, 256, 0))
        finally:
            os.close(fd)
        if watcher is None or int(watcher[1]):
            who = watcher[1].decode() if watcher else "?"
            file.refuse(f"POSIX message queue {name} that notifies process {who} (mq_notify)", "have it read without")
            return None
        if count * largest > LIMIT:
            file.refuse(f"POSIX message queue {name} with room for more than {LIMIT >> 20} MiB", "have it read first")
            return None
        deleted = file.stat.st_nlink == 0
        return cls(file.key, Attributes.of(file.stat), name, deleted, most, largest, count)

    def needs(self, where: str) -> list[FileNeed]:
        """Its name is free in a new namespace."""
        return []

    def make(self, placing: Placing) -> tuple[int, int]:
        """The queue, empty."""
        program, name = placing.program, placing.program.string(self.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC
        attributes = program.data(_ATTRIBUTES.pack(0, self.most, self.largest, 0, 0, 0, 0, 0))
        number = placing.hold(placing.call("mq_open", name, flags, 0o600, attributes))
        return number, number

    def open(self, placing: Placing, held: tuple[int, ...], flags: int) -> int:
        """A description with these flags. What open(2) gives has O_LARGEFILE, and what mq_open(2) gives has not."""
        if flags & O_LARGEFILE:
            return placing.reopen(held[0], flags_for_open(flags))
        wanted = flags & (os.O_ACCMODE | os.O_NONBLOCK) | os.O_CLOEXEC
        return placing.call("mq_open", placing.program.string(self.name), wanted, 0, 0)

    def forget(self, program: Program, label: str) -> None:
        """When all have it: its name goes again, if it has none."""
        if self.deleted:
            program.syscall("mq_unlink", program.string(self.name), label=f"{label}: delete it again")

    def fill(self, placing: Placing, held: tuple[int, ...]) -> None:
        """Messages, owner and times."""
        send(placing.program, held[0], self.letters, placing.label)
        self.attributes.give_owner(placing, held[0])
        self.attributes.give_times(placing, held[0])


def send(program: Program, fd: int, letters: tuple[Letter, ...], label: str) -> None:
    """Messages, oldest first."""
    for number, letter in enumerate(letters):
        content, length = program.data(letter.content), len(letter.content)
        args = fd, content, length, letter.priority, 0
        program.syscall("mq_timedsend", *args, label=f"{label}: message {number}")


def taken(program: Program, number: int, queue: PosixQueue) -> Callable[[Results], tuple[Letter, ...]]:
    """By a process that has it at that number: what is in it, which is there again when the program has run. When it
    has failed, what was received and not sent back."""
    label = f"POSIX message queue {queue.name}"
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    fd = program.syscall("openat", AT_FDCWD, program.string(f"/proc/self/fd/{number}"), flags, 0, label=label)
    received, sent = [], []
    for index in range(queue.count):
        room, priority = program.space(queue.largest), program.space(8)
        what = f"{label}: message {index}"
        args = fd, room, queue.largest, priority, 0
        received.append((program.syscall("mq_timedreceive", *args, label=what), room, priority))
    for length, room, priority in received:
        what = f"{label}: message back"
        sent.append(program.syscall("mq_timedsend", fd, room, length, priority.load32(), 0, label=what))
    program.syscall("close", fd, label=label)

    def decode(results: Results) -> tuple[Letter, ...]:
        failed = results.failed is not None
        reached = _reached(results) if failed else len(received) + len(sent)
        letters = tuple(
            Letter(int.from_bytes(results.bytes(priority)[:4], "little"), results.bytes(room)[: results.of(length)])
            for length, room, priority in received[:reached]
        )
        return letters[max(0, reached - len(received)) :] if failed else letters

    def _reached(results: Results) -> int:
        """How many messages were received, and then how many sent."""
        assert results.failed is not None
        ops = [op for op in results.program.ops if op.name.startswith("mq_timed")]
        return next((at for at, op in enumerate(ops) if op is results.failed[0]), len(ops))

    return decode

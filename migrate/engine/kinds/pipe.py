"""Pipes and FIFOs (pipe(7), fifo(7)) both of whose ends are in the process, with what is in them."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import termios
from collections.abc import Sequence
from dataclasses import dataclass

from migrate.engine.kernel.fdcalls import F_GETPIPE_SZ, F_SETPIPE_SZ, O_DIRECT, pending_bytes, pipe_contents
from migrate.engine.kinds.needs import FIFO, FileNeed
from migrate.engine.kinds.opened import Key, OpenFile
from migrate.engine.kinds.placing import Placing
from migrate.engine.kinds.regular import why_not_reached
from migrate.engine.program import OpKind
from migrate.errors import Problem

DEFAULT_CAPACITY = 16 * 4096  # pipe(7)


@dataclass(frozen=True)
class Pipe:
    """``path``: of a FIFO. ``capacity`` in bytes. ``chunks``: what is in it; with ``packets`` one item each."""

    key: Key
    path: str | None
    capacity: int
    packets: bool
    chunks: tuple[bytes, ...]

    @classmethod
    def dump(cls, ends: Sequence[OpenFile]) -> Pipe | None:
        """``ends``: every description of this pipe that the process has, and no one else has any."""
        first = ends[0]
        path = None if first.link.startswith("pipe:") else first.link
        if path is not None and not first.dump.leads_to(path, first.stat):
            first.refuse(*why_not_reached(first))
            return None
        packets = any(end.writes and end.flags & O_DIRECT for end in ends)
        reader = next((end for end in ends if end.reads), None)
        with (reader or first).duplicate() as fd:
            capacity = fcntl.fcntl(fd, F_GETPIPE_SZ)
            if reader is None:  # no one will ever read what is in it
                return cls(first.key, path, capacity, packets, ())
            waiting = pending_bytes(fd)
            chunks = _contents(fd)
        if first.dump.options.frozen and sum(map(len, chunks)) != waiting:
            first.refuse(
                f"pipe with {waiting} bytes in it, more than a pipe of ours may hold ({capacity} bytes)",
                "raise /proc/sys/fs/pipe-max-size, or give migrate CAP_SYS_RESOURCE",
            )
            return None
        return cls(first.key, path, capacity, packets, chunks)

    @property
    def volume(self) -> int:
        """Bytes of contents."""
        return sum(map(len, self.chunks))

    def needs(self, where: str) -> list[FileNeed]:
        return [] if self.path is None else [FileNeed(where, self.path, FIFO)]

    def make(self, placing: Placing) -> tuple[int, int]:
        """A reading and a writing descriptor, held."""
        packets = O_DIRECT if self.packets else 0
        if self.path is None:
            reading, writing = placing.pipe(os.O_NONBLOCK | packets)
            reading, writing = placing.hold(reading), placing.hold(writing)
        else:
            # Opened for both at once, a FIFO waits for nobody (fifo(7)).
            reading = writing = placing.hold(placing.open(self.path, os.O_RDWR | os.O_NONBLOCK | packets))
        if self.capacity != DEFAULT_CAPACITY:
            label = f"{placing.label}: capacity"
            placing.program.syscall("fcntl", writing, F_SETPIPE_SZ, self.capacity, label=label, expect=self.capacity)
        return reading, writing

    def open(self, placing: Placing, held: tuple[int, ...], flags: int, own: bool) -> int:
        """A description of one end. ``own``: the held one is still free to become it."""
        mode = flags & os.O_ACCMODE
        if self.path is not None:
            number = placing.open(self.path, mode | os.O_NONBLOCK)
        elif own and mode != os.O_RDWR:
            number = placing.copy(held[mode])  # O_RDONLY is 0, O_WRONLY 1
        else:
            number = placing.reopen(held[0], mode | os.O_NONBLOCK)
        return number

    def fill(self, placing: Placing, held: tuple[int, ...]) -> None:
        """Write what was in it. The held end does not block: a pipe that is too small is an error."""
        if self.path is not None and self.chunks:
            self._check_unused(placing, held[0])
        for chunk in self.chunks:
            content, label = placing.program.data(chunk), f"{placing.label}: contents"
            placing.program.syscall("write", held[1], content, len(chunk), label=label, expect=len(chunk))

    def _check_unused(self, placing: Placing, number: int) -> None:
        """A FIFO whose file system is of the same kernel there is the very one that the process has here: what is in it
        would be in it twice."""
        program, label = placing.program, f"{placing.label}: FIFO that has something in it there already"
        room = program.space(4)
        program.syscall("ioctl", number, termios.FIONREAD, room, label=label)
        program.op(OpKind.CHECK, room, 0xFFFF_FFFF, 0, label=label)


def _contents(fd: int) -> tuple[bytes, ...]:
    try:
        return pipe_contents(fd)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EAGAIN):  # too large for us; or, in a process that runs, just read
            return ()
        raise


def is_pipe(file: OpenFile) -> bool:
    return file.format == stat.S_IFIFO


def leads_outside(ends: Sequence[OpenFile], holders: Sequence[int]) -> str | None:
    """Who else has this pipe, in words, or None. ``holders``: other processes seen to have it. A missing end that
    nobody holds shows as a hang-up; for a FIFO a missing end may just be one that nobody has opened yet."""
    if holders:
        return "process " + ", ".join(map(str, holders[:3]))
    if not ends[0].link.startswith("pipe:"):
        return None
    for kind, there, sign in (
        ("writing", any(end.writes for end in ends), select.POLLHUP),
        ("reading", any(end.reads for end in ends), select.POLLERR),
    ):
        if not there:
            with ends[0].duplicate() as fd:
                if not _polls(fd) & sign:
                    return f"a process that we may not see has its {kind} end"
    return None


def _polls(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return next((events for _, events in poll.poll(0)), 0)


def check_capacity(pipes: Sequence[Pipe], dump_pid: int, pipe_max_size: int, may_exceed: bool) -> list[Problem]:
    """Pipes larger than the destination lets us make. ``pipe_max_size``: its /proc/sys/fs/pipe-max-size;
    ``may_exceed``: whether we have CAP_SYS_RESOURCE there."""
    return [
        Problem(
            f"pid {dump_pid}",
            f"pipe of {pipe.capacity} bytes, and the destination allows {pipe_max_size}",
            "raise /proc/sys/fs/pipe-max-size there",
        )
        for pipe in pipes
        if pipe.capacity > pipe_max_size and not may_exceed
    ]

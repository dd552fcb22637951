"""Puts descriptors where they belong in a fresh process: which number each call gives is known beforehand.

open(2) and its kin give the lowest free number, and the restoree starts with known ones only. So the compiler keeps
the books, every op says which number it expects, and nothing has to be looked up while the program runs."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from migrate.engine.kernel.fdcalls import F_DUPFD_CLOEXEC
from migrate.engine.program import Arg, Buffer, OpKind, Program

AT_FDCWD = -100
FD_CLOEXEC = 1
F_SETFD, F_SETFL = 2, 4
RLIMIT_NOFILE = 7
SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME  # fcntl(2), F_SETFL; O_ASYNC goes with the owner
EVERY_FLAG = -1  # of a kind whose open(2) takes them all
_ALL = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class Context:
    """``reserved``: numbers in use by the restorer. ``low_limit``: from here up numbers may be used for a while.
    ``stdio``: where standard streams that led outside go (None: /dev/null). ``objects``: files that the address space
    made already, by their (dev, ino) on the source, at numbers that are closed in the end. ``taken``: names of
    deleted files that something else has on the destination. ``streams``: descriptors of the standard streams that
    take the place of those that led outside, or none."""

    reserved: frozenset[int] = frozenset()
    low_limit: int = 1 << 9
    stdio: str | None = None
    objects: Mapping[tuple[int, int], int] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    streams: tuple[int, ...] = ()


class Numbers:
    """Which numbers are in use."""

    def __init__(self, used: Iterable[int]) -> None:
        self.used = set(used)
        self._from = 0  # nothing below is free

    def lowest(self, start: int = 0) -> int:
        """The lowest free one at or above ``start``, as the kernel chooses it."""
        number = max(start, self._from)
        while number in self.used:
            number += 1
        if start <= self._from:
            self._from = number
        return number

    def take(self, number: int) -> None:
        self.used.add(number)

    def give(self, number: int) -> None:
        self.used.remove(number)
        self._from = min(self._from, number)


class Placing:
    """Writes the ops that open and place descriptors. ``wanted``: every number that the process had."""

    def __init__(self, program: Program, context: Context, wanted: Iterable[int]) -> None:
        self.program, self.context = program, context
        self.wanted = frozenset(wanted)
        occupied = context.reserved | frozenset(context.objects.values())
        if clash := self.wanted & occupied:
            raise ValueError(f"descriptors {sorted(clash)} of the process are the restorer's; give it others")
        self.numbers = Numbers(occupied)
        self._holders: list[int] = []
        self.terminals = {index for device, index in context.objects if device < 0}  # numbers of ptys that were made
        self.label = ""
        self.places: Mapping[int, bool] = {}  # of what is opened now: its numbers, and whether each is close-on-exec

    def call(self, name: str, *args: Arg) -> int:
        """A system call that gives a new descriptor; its number."""
        number = self.numbers.lowest()
        self.program.syscall(name, *args, label=self.label, expect=number)
        self.numbers.take(number)
        return number

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """openat(2), never as a controlling terminal, close-on-exec; the number."""
        flags |= os.O_CLOEXEC | os.O_NOCTTY
        return self.call("openat", AT_FDCWD, self.program.string(path), flags, mode)

    def reopen(self, holder: int, flags: int) -> int:
        """A new description of what ``holder`` is one of (proc_pid_fd(5)). Needs /proc in the restoree."""
        return self.open(f"/proc/self/fd/{holder}", flags)

    def pipe(self, flags: int) -> tuple[int, int]:
        """pipe2(2): reading and writing end."""
        room = self.program.space(8)
        self.program.syscall("pipe2", room, flags | os.O_CLOEXEC, label=self.label)
        return self._pair(room)

    def sockets(self, family: int, kind: int) -> tuple[int, int]:
        """socketpair(2), close-on-exec and non-blocking."""
        room = self.program.space(8)
        kind |= os.O_CLOEXEC | os.O_NONBLOCK  # as SOCK_CLOEXEC and SOCK_NONBLOCK are defined
        self.program.syscall("socketpair", family, kind, 0, room, label=self.label)
        return self._pair(room)

    def _pair(self, room: Buffer) -> tuple[int, int]:
        """The two lowest free numbers, which a call has written there."""
        first = self.numbers.lowest()
        self.numbers.take(first)
        second = self.numbers.lowest()
        self.numbers.take(second)
        (both,) = struct.unpack("<Q", struct.pack("<ii", first, second))
        self.program.op(OpKind.CHECK, room, _ALL, both, label=self.label)
        return first, second

    def hold(self, number: int) -> int:
        """Move it out of the way, until `release` or `drop`; the new number."""
        start = self.context.low_limit
        while (high := self.numbers.lowest(start)) in self.wanted:
            start = high + 1
        self.program.syscall("fcntl", number, F_DUPFD_CLOEXEC, start, label=self.label, expect=high)
        self.numbers.take(high)
        self._holders.append(high)
        self.close(number)
        return high

    def drop(self, number: int) -> None:
        """Close what was held."""
        self._holders.remove(number)
        self.close(number)

    def close(self, number: int) -> None:
        self.program.syscall("close", number, label=self.label)
        self.numbers.give(number)

    def copy(self, holder: int) -> int:
        """A descriptor for the very description that ``holder`` is for."""
        return self.call("fcntl", holder, F_DUPFD_CLOEXEC, 0)

    def place(self, opened: int, places: Mapping[int, bool]) -> None:
        """Give what was just opened its numbers, each with its close-on-exec flag."""
        for number, cloexec in places.items():
            if number != opened:
                flags = os.O_CLOEXEC if cloexec else 0
                self.program.syscall("dup3", opened, number, flags, label=self.label, expect=number)
                self.numbers.take(number)
            elif not cloexec:
                self.program.syscall("fcntl", number, F_SETFD, 0, label=self.label)
        if opened not in places:
            self.close(opened)

    def release(self) -> None:
        """Close what was held, and what the address space left open for us."""
        self.label = "descriptors that were needed for a while"
        for number in [*self._holders, *self.context.objects.values()]:
            self.close(number)
        self._holders.clear()

    def raise_limit(self) -> None:
        """The soft limit of descriptors up to the hard one: the process may have numbers above its limit. So limits
        are restored after descriptors."""
        label, room = "limit of open files", self.program.space(16)
        self.program.syscall("prlimit64", 0, RLIMIT_NOFILE, 0, room, label=label)
        self.program.op(OpKind.COPY, room, room.at(8), 8, label=label)
        self.program.syscall("prlimit64", 0, RLIMIT_NOFILE, room, 0, label=label)


def flags_for_open(flags: int) -> int:
    """Those that openat takes again and that mean the same then."""
    return flags & ~(os.O_ASYNC | os.O_CREAT | os.O_EXCL | os.O_TRUNC)

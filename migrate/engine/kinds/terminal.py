"""Pseudo-terminals (pty(7)) that somebody of those that move has the master of: as data, and how they are made again.
How they are read is in kinds/terminal_reader.py, controlling terminals are in engine/lineage.py.

A pty has the number of its name, /dev/pts/N, and gets it again: the kernel gives the lowest that is free, so those
below are taken for a moment. Order: the master, unlocked; a slave for us; what waits, either way; settings, size and
modes; the slaves of the processes; then ours is closed, so that a master whose slaves are all gone sees that.
"""

from __future__ import annotations

import os
import struct
import termios as tty
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kinds.needs import DEVICE, TERMINAL, FileNeed
from migrate.engine.kinds.opened import Key, OpenFile
from migrate.engine.kinds.placing import AT_FDCWD, EVERY_FLAG, Placing, flags_for_open
from migrate.engine.kinds.terminal_input import STOP, Waiting, canonical, literal, typed
from migrate.engine.program import OpKind, Program
from migrate.errors import NumberTaken

# ioctl_tty(2); asm-generic/ioctls.h
TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
TIOCGPTN, TIOCSPTLCK, TIOCGPTLCK, TIOCGPTPEER = 0x80045430, 0x40045431, 0x80045439, 0x5441  # the last: Linux 4.13
TIOCGPKT, TIOCGEXCL, TIOCGDEV = 0x80045438, 0x80045440, 0x80045432
MASTER = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt
OWN = os.makedev(5, 0)  # /dev/tty
SLAVES = 136
PTMX, DIRECTORY = "/dev/ptmx", "/dev/pts"
_KEY = -1  # in place of a device
_PIECE = 4096  # bytes; the kernel has room for two of these on the way to the master
_FLOWING, STOPPED, HELD = 0, 1, 2  # by the STOP character, by tcflow(3)
_POLLOUT = 4


def key(index: int) -> Key:
    """Of a pty: the inode of /dev/ptmx is that of all masters."""
    return _KEY, index


def number_of(made: Key) -> int | None:
    """Of a key of a pty."""
    return made[1] if made[0] == _KEY else None


def path(index: int) -> str:
    """Of its slaves."""
    return f"{DIRECTORY}/{index}"


def occupied(names: Collection[str]) -> set[int]:
    """Numbers of ptys, out of names of files."""
    own = (name.removeprefix(f"{DIRECTORY}/") for name in names if name.startswith(f"{DIRECTORY}/"))
    return {int(name) for name in own if name.isdecimal()}


def open_master(placing: Placing, index: int, others: Collection[int]) -> int:
    """A new one of this number, unlocked. ``others``: numbers that are in use."""
    if index in others:
        raise NumberTaken(f"the number of the terminal {path(index)} was given to another one there")
    program, label = placing.program, placing.label
    between = [placing.open(PTMX, os.O_RDWR) for other in range(index) if other not in others]
    number = placing.open(PTMX, os.O_RDWR)
    room = program.space(8)
    program.syscall("ioctl", number, TIOCGPTN, room, label=label)
    program.op(OpKind.CHECK, room, 0xFFFF_FFFF, index, label=f"{label}: its number, which may be taken by now")
    program.syscall("ioctl", number, TIOCSPTLCK, program.data(bytes(4)), label=f"{label}: unlock")
    for other in between:
        placing.close(other)
    return number


@dataclass(frozen=True)
class Pty:
    """``termios``: struct termios2; ``size``: struct winsize; ``exclusive``: of master and slave; ``opened``: somebody
    has, or had, a slave of it; ``waiting``: for who reads from a slave, ``output``: for who reads from the master;
    ``flow``: whether that was stopped. ``lines``: number of the line discipline."""

    index: int
    uid: int
    gid: int
    mode: int
    termios: bytes
    size: bytes
    packets: bool
    locked: bool
    exclusive: tuple[bool, bool]
    opened: bool
    waiting: Waiting
    output: bytes
    flow: int

    @property
    def key(self) -> Key:
        return key(self.index)

    @property
    def volume(self) -> int:
        """Bytes of contents."""
        return len(self.output)

    def needs(self, where: str) -> list[FileNeed]:
        return [FileNeed(where, PTMX, DEVICE, rdev=MASTER), FileNeed(where, path(self.index), TERMINAL)]

    def make(self, placing: Placing) -> tuple[int, int]:
        """The master, held."""
        others = occupied(placing.context.taken) | placing.terminals
        number = placing.hold(open_master(placing, self.index, others))
        placing.terminals.add(self.index)
        return number, number

    def fill(self, placing: Placing, held: tuple[int, ...]) -> None:
        """All that it is, but for the lock."""
        program, label, master = placing.program, placing.label, held[0]
        name = program.string(path(self.index))
        program.syscall("fchownat", AT_FDCWD, name, self.uid, self.gid, 0, label=f"{label}: owner")
        program.syscall("fchmodat", AT_FDCWD, name, self.mode, label=f"{label}: mode")
        number = master
        if self.opened:
            number = placing.hold(self.slave(placing, master, os.O_RDWR | os.O_NONBLOCK))
            self._type(program, number, f"{label}: what waits for a reader")
            if self.waiting.unseen:
                content, length = program.data(self.waiting.unseen), len(self.waiting.unseen)
                program.syscall("write", master, content, length, label=f"{label}: what was written", expect=length)
            self._write(program, number, f"{label}: its output")
            if self.flow == STOPPED:
                _set(program, number, literal(self.termios, canonical(self.termios), flow=True), label)
                program.syscall("ioctl", number, tty.TIOCSTI, program.data(bytes([STOP])), label=f"{label}: stop")
        _set(program, number, self.termios, f"{label}: settings")
        if self.flow == HELD:
            program.syscall("ioctl", number, tty.TCXONC, tty.TCOOFF, label=f"{label}: stop")
        program.syscall("ioctl", number, tty.TIOCSWINSZ, program.data(self.size), label=f"{label}: size")
        if self.packets:
            program.syscall("ioctl", master, tty.TIOCPKT, program.data(b"\1\0\0\0"), label=f"{label}: packet mode")
        for end, exclusive in zip((master, number), self.exclusive, strict=True):
            if exclusive:
                program.syscall("ioctl", end, tty.TIOCEXCL, 0, label=f"{label}: exclusive")

    def _type(self, program: Program, number: int, label: str) -> None:
        every = program.data(bytes(range(256)))
        for settings, keys in typed(self.waiting, self.termios):
            _set(program, number, settings, label)
            for each in keys:
                program.syscall("ioctl", number, tty.TIOCSTI, every.at(each), label=label)

    def _write(self, program: Program, number: int, label: str) -> None:
        if self.output:
            _set(program, number, literal(self.termios, canonical(self.termios)), label)
        for start in range(0, len(self.output), _PIECE):
            piece = self.output[start : start + _PIECE]
            poll = program.data(struct.pack("<ihh", number, _POLLOUT, 0))
            second = program.data(struct.pack("<qq", 1, 0))
            program.syscall("ppoll", poll, 1, second, 0, 8, label=label, expect=1)
            program.syscall("write", number, program.data(piece), len(piece), label=label, expect=len(piece))

    def slave(self, placing: Placing, master: int, flags: int) -> int:
        """A new description of it, never as a controlling terminal."""
        return placing.call("ioctl", master, TIOCGPTPEER, flags_for_open(flags) | os.O_NOCTTY | os.O_CLOEXEC)

    def lock(self, program: Program, master: int, label: str) -> None:
        """As it was: the last thing, for nobody can open a slave then."""
        if self.locked:
            program.syscall("ioctl", master, TIOCSPTLCK, program.data(b"\1\0\0\0"), label=f"{label}: lock")


def _set(program: Program, number: int, settings: bytes, label: str) -> None:
    program.syscall("ioctl", number, TCSETS2, program.data(settings), label=label)


@dataclass(frozen=True)
class HungUp:
    """A slave whose master was closed: reads come to the end, writes fail."""

    applied: ClassVar[int] = EVERY_FLAG

    def still_good(self, file: OpenFile) -> bool:
        return False

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return [FileNeed(where, PTMX, DEVICE, rdev=MASTER)]

    def open(self, placing: Placing, flags: int) -> int:
        """Of a pty that is there for a moment, of any number."""
        master = placing.open(PTMX, os.O_RDWR)
        unlocked = placing.program.data(bytes(4))
        placing.program.syscall("ioctl", master, TIOCSPTLCK, unlocked, label=placing.label)
        number = placing.call("ioctl", master, TIOCGPTPEER, flags_for_open(flags) | os.O_NOCTTY | os.O_CLOEXEC)
        placing.close(master)
        return number


@dataclass(frozen=True)
class OwnTerminal:
    """/dev/tty: a slave of the controlling terminal of who has opened it. Opened late, for that has to be there."""

    index: int

    applied: ClassVar[int] = EVERY_FLAG

    def still_good(self, file: OpenFile) -> bool:
        return False

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        return placing.open("/dev/tty", flags_for_open(flags))

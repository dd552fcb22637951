"""Reads pseudo-terminals, as far as the tree has both ends of them; what has its other end elsewhere leads outside.

What waits in a terminal shows to nobody who does not take it. So it is taken and typed again at once, while all of the
tree stands still, and by a child of ours: whatever becomes of us in the middle of that, the terminal is as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import select
import signal
import stat
import struct
import termios as tty
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from agents.hostfacts import cannot_type
from migrate.engine.kernel.fdcalls import same_file
from migrate.engine.kinds.listing import went_away
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.terminal import (
    HELD,
    MASTER,
    OWN,
    SLAVES,
    STOPPED,
    TCGETS2,
    TCSETS2,
    TIOCGDEV,
    TIOCGEXCL,
    TIOCGPKT,
    TIOCGPTLCK,
    TIOCGPTPEER,
    TIOCSPTLCK,
    HungUp,
    OwnTerminal,
    Pty,
    path,
)
from migrate.engine.kinds.terminal_input import (
    STOP,
    TERMIOS_SIZE,
    Waiting,
    canonical,
    external,
    found,
    literal,
    typed,
)

_MOST = 1 << 16  # bytes of one read
_A_MOMENT = 0.001  # seconds; the worker that brings what was written to the line discipline takes microseconds
_PATIENCE = 5.0  # seconds for output to find room again
_ALLOW = defaultdict(lambda: "allow that (sysctl dev.tty.legacy_tiocsti=1)", {errno.EPERM: "run migrate as root"})
"""What to do, by the errno of `agents.hostfacts.cannot_type`: nobody else can look at what waits without losing it."""

Found = tuple[Waiting, bytes, int]
Result = TypeVar("Result")


def is_terminal(file: OpenFile) -> bool:
    """A pty, or /dev/tty."""
    device = file.stat.st_rdev
    return file.format == stat.S_IFCHR and (device in (MASTER, OWN) or os.major(device) == SLAVES)


class TerminalReader:
    """Of one dump. ``files``: of all that move together."""

    def __init__(self, files: Sequence[OpenFile], frozen: bool) -> None:
        self._frozen = frozen
        self.masters: dict[int, OpenFile] = {}  # by number
        self._contents: dict[int, Found] | None = None
        self._devices: dict[int, int | None] = {}  # of each terminal, by id of the file; None: hung up
        candidates = [file for file in files if is_terminal(file) and not file.flags & os.O_PATH]
        for file in candidates:
            try:
                if file.stat.st_rdev == MASTER:
                    known = self.masters.setdefault(_number_of(file), file)
                    if known is not file and not _same(known, file):
                        file.refuse("terminal of another directory of terminals (devpts)", "end what uses it")
                else:
                    self._devices[id(file)] = _device(file)
            except OSError as error:
                if frozen or not went_away(error):
                    raise
        self.slaves: dict[int, OpenFile] = {}  # one of each
        for file in candidates:
            if (index := self.index(file)) is not None and file.stat.st_rdev != MASTER:
                self.slaves.setdefault(index, file)

    def device(self, file: OpenFile) -> int | None:
        """Of a slave, which one it is; also of /dev/tty."""
        return self._devices.get(id(file))

    def index(self, file: OpenFile) -> int | None:
        """The number of a pty that is inside, if it is an end of one."""
        if file.stat.st_rdev == MASTER:
            number = _number_of(file)
        else:
            device = self._devices.get(id(file))
            if device is None or os.major(device) != SLAVES:
                return None
            number = os.minor(device)
        return number if number in self.masters else None

    def inside(self, file: OpenFile) -> bool:
        """Whether nothing of it stays behind."""
        return self.index(file) is not None or self._is_hung_up(file)

    def _is_hung_up(self, file: OpenFile) -> bool:
        return self._devices.get(id(file), 0) is None

    def single(self, file: OpenFile) -> HungUp | OwnTerminal | None:
        """What is a description by itself; None: one of the ends of a pty."""
        if self._is_hung_up(file):
            return HungUp()
        index = self.index(file)
        if file.stat.st_rdev == OWN and index is not None and _terminal_of(file) == index:
            return OwnTerminal(index)
        return None

    def dump(self, index: int) -> Pty | None:
        """None: refused."""
        file = self.masters[index]
        name = file.dump.prefix + path(index)
        try:
            node = os.stat(name, follow_symlinks=False)
        except FileNotFoundError:
            node = None
        if node is None or node.st_rdev != os.makedev(SLAVES, index):
            file.refuse(f"master of a terminal that is not {path(index)}", "close it, or stop what uses it")
            return None
        with file.duplicate() as master:
            settings = _ask(master, TCGETS2, TERMIOS_SIZE)
            gone = bool(_events(master, 0) & select.POLLHUP)
            opened = gone or index in self.slaves
            packets, locked = (bool(_number(master, what)) for what in (TIOCGPKT, TIOCGPTLCK))
            exclusive = bool(_number(master, TIOCGEXCL)), False
            if external(settings):
                file.refuse("terminal whose lines somebody else edits (EXTPROC)", "end what uses it")
                return None
            if packets and _events(master, select.POLLPRI) & select.POLLPRI:
                file.refuse("terminal with a state of packet mode that has not been read", passing=True)
                return None
            if opened and (why := cannot_type()):
                file.refuse(f"terminal into which we may not put what waits in it ({os.strerror(why)})", _ALLOW[why])
                return None
            if index in self.slaves and self._discipline(index):
                file.refuse("terminal with another line discipline than N_TTY", "end what uses it")
                return None
            if index in self.slaves:
                with self.slaves[index].duplicate() as slave:
                    exclusive = exclusive[0], bool(_number(slave, TIOCGEXCL))
            size = _ask(master, tty.TIOCGWINSZ, 8)
        if self._frozen and self._contents is None:
            self._contents = self._look_at_all()
        waiting, output, flow = (self._contents or {}).get(index, (Waiting(), b"", 0))
        mode = stat.S_IMODE(node.st_mode)
        return Pty(
            index, node.st_uid, node.st_gid, mode, settings, size, packets, locked, exclusive, opened, waiting, output,
            flow,
        )  # fmt: skip

    def _look_at_all(self) -> dict[int, Found]:
        """What waits in each: of all at once, for a child of ours takes its time to be born."""
        with ExitStack() as stack:
            looks: dict[int, Callable[[], Found]] = {}
            for index, file in self.masters.items():
                master = stack.enter_context(file.duplicate())
                settings, packets = _ask(master, TCGETS2, TERMIOS_SIZE), bool(_number(master, TIOCGPKT))
                if external(settings) or (packets and _events(master, select.POLLPRI) & select.POLLPRI):
                    continue  # refused
                if index in self.slaves or _events(master, 0) & select.POLLHUP:
                    slave = _peer(master, bool(_number(master, TIOCGPTLCK)))
                    stack.callback(os.close, slave)
                    if _may_hold(master, slave, settings):
                        looks[index] = partial(_look, master, slave, settings, packets)
            return _apart(lambda: {index: look() for index, look in looks.items()}) if looks else {}

    def _discipline(self, index: int) -> int:
        with self.slaves[index].duplicate() as slave:
            return _number(slave, tty.TIOCGETD)


def _number_of(master: OpenFile) -> int:
    """Of a pty: in fdinfo since "tty: show associated slave pty index in fdinfo", Linux 4.14."""
    return int(master.info.one("tty-index"))


def _same(one: OpenFile, other: OpenFile) -> bool:
    return same_file(one.dump.pid, one.numbers[0], other.dump.pid, other.numbers[0])


def _device(file: OpenFile) -> int | None:
    with file.duplicate() as fd:
        try:
            return _number(fd, TIOCGDEV)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None


def _terminal_of(file: OpenFile) -> int:
    """Number of the controlling terminal of a process that has it open, or -1."""
    device = int(file.dump.proc.text("stat").rpartition(")")[2].split()[4])
    return os.minor(device) if os.major(device) == SLAVES else -1


def _ask(fd: int, what: int, size: int) -> bytes:
    room = bytearray(size)
    fcntl.ioctl(fd, what, room)
    return bytes(room)


def _number(fd: int, what: int) -> int:
    return int(struct.unpack("<i", _ask(fd, what, 4))[0])


def _events(fd: int, wanted: int) -> int:
    """Also brings what was written to the line discipline, where nothing is there yet (n_tty_poll())."""
    poll = select.poll()
    poll.register(fd, wanted)
    return next((events for _, events in poll.poll(0)), 0)


def _peer(master: int, locked: bool) -> int:
    """A slave, which does not block."""
    if locked:
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("<i", 0))
    try:
        return fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        if locked:
            fcntl.ioctl(master, TIOCSPTLCK, struct.pack("<i", 1))


def _may_hold(master: int, slave: int, settings: bytes) -> bool:
    """Whether something may wait in it. A line that has no end yet shows to nobody."""
    events = _events(slave, select.POLLIN | select.POLLOUT)
    stopped = not events & select.POLLOUT
    return stopped or canonical(settings) or bool((events | _events(master, select.POLLIN)) & select.POLLIN)


def _apart(work: Callable[[], Result]) -> Result:
    """Done by a child, which nothing keeps from finishing it. OSError: it could not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            try:
                answer = pickle.dumps((None, work()))
            except BaseException as error:
                answer = pickle.dumps((f"{type(error).__name__}: {error}", None))
            while answer:
                answer = answer[os.write(writing, answer) :]
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        told = answers.read()
    os.waitpid(child, 0)
    if not told:
        raise OSError(errno.EIO, "who looked at a terminal was killed")
    failure, result = pickle.loads(told)
    if failure is not None:
        raise OSError(errno.EIO, f"looking at what waits in a terminal: {failure}")
    made: Result = result
    return made


def _look(master: int, slave: int, settings: bytes, packets: bool) -> Found:
    """Takes all that waits, and gives it back."""
    if packets:
        fcntl.ioctl(master, tty.TIOCPKT, struct.pack("<i", 0))
    output, waiting, flow = b"", Waiting(), 0
    lines = canonical(settings)
    try:
        time.sleep(_A_MOMENT)
        while _events(master, select.POLLIN) & select.POLLIN:
            output += os.read(master, _MOST)
        stopped = not _events(slave, select.POLLOUT) & select.POLLOUT
        waiting = _take(slave, settings)
        if stopped:
            # Without IXON it goes on by itself (n_tty_set_termios()), unless tcflow(3) has stopped it.
            flow = STOPPED if _events(slave, select.POLLOUT) & select.POLLOUT else HELD
            if flow == HELD:
                fcntl.ioctl(slave, tty.TCXONC, tty.TCOON)
    finally:
        for under, keys in typed(waiting, settings):
            fcntl.ioctl(slave, TCSETS2, under)
            for each in keys:
                fcntl.ioctl(slave, tty.TIOCSTI, bytes([each]))
        if waiting.unseen:
            os.write(master, waiting.unseen)
        fcntl.ioctl(slave, TCSETS2, literal(settings, lines))
        _write(slave, output)
        if flow == STOPPED:
            fcntl.ioctl(slave, TCSETS2, literal(settings, lines, flow=True))
            fcntl.ioctl(slave, tty.TIOCSTI, bytes([STOP]))
        fcntl.ioctl(slave, TCSETS2, settings)
        if flow == HELD:
            fcntl.ioctl(slave, tty.TCXONC, tty.TCOOFF)
        if packets:
            fcntl.ioctl(master, tty.TIOCPKT, struct.pack("<i", 1))
    return waiting, output, flow


def _take(slave: int, settings: bytes) -> Waiting:
    """All that waits for a reader of the slave, which is left under other settings."""
    lines: list[bytes] = []
    if canonical(settings):
        fcntl.ioctl(slave, TCSETS2, literal(settings, lines=True))
        while _events(slave, select.POLLIN) & select.POLLIN:
            lines.append(os.read(slave, _MOST))
    fcntl.ioctl(slave, TCSETS2, literal(settings, lines=False))
    rest = b""
    while piece := _read(slave):
        rest += piece
    return found(lines, rest, settings)


def _read(slave: int) -> bytes:
    try:
        return os.read(slave, _MOST)
    except BlockingIOError:
        return b""


def _write(slave: int, output: bytes) -> None:
    deadline = time.monotonic() + _PATIENCE
    while output:
        poll = select.poll()
        poll.register(slave, select.POLLOUT)
        if not poll.poll(100) and time.monotonic() > deadline:
            raise TimeoutError("output finds no room where it was")
        try:
            output = output[os.write(slave, output) :]
        except BlockingIOError:
            continue

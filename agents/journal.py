"""What a host remembers of a migration, on disk: one file for each migration and role, only ever appended to.

``$XDG_STATE_HOME/migrate/journal/ID.source`` (or ``~/.local/state/…``) is written by the coordinator,
``ID.destination`` by the destination agent and, in the commit itself, by the overseer. A record is a line: the CRC-32
of the rest in eight hexadecimal digits, a blank, and a JSON object with ``state``, ``time``, ``boot`` (the host's
boot_id) and what the state needs. A last line that is not whole was being written when its writer died, and counts for
nothing.

Nothing in a journal is secret, but who could write to one could make us end a process: so files are 0600 in a directory
0700, and what is anybody else's is refused. Everything is opened relative to a directory that was checked.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
import zlib
from typing import Any, NamedTuple

from agents import private
from agents.log import Log

SOURCE, DESTINATION = "source", "destination"  # roles
# States, of the destination. RELEASING and RELEASED have the last tie to the overseer's life undone between them.
BEGUN, PREPARED, COMMITTED, RELEASING, RELEASED, ABORTED = (
    *("begun", "prepared", "committed", "releasing", "released", "aborted"),
)
# And of the source, which begins with BEGUN too. LOCKS: those that are about to be released there.
LOCKS, INTENT, DONE, ROLLED_BACK = "locks", "intent", "done", "rolled back"

ID = re.compile(r"\d{12}-[0-9a-f]{12}")
_NAME = re.compile(rf"({ID.pattern})\.({SOURCE}|{DESTINATION})")
_TAIL = 512  # bytes; more than any record of the commit has
_UNNAMED = 60.0  # seconds after which a journal without its name never gets it
_LIMIT = 1 << 20  # bytes; a journal has a few hundred, and some for each lock


class JournalError(Exception):
    """A journal that makes no sense, or that we may not trust: which, and why."""


class Record(NamedTuple):
    """One line. ``time``: seconds since 1970."""

    state: str
    time: float
    boot: str
    fields: dict[str, Any]


def new_id() -> str:
    """Sortable by time, to a fraction of a second, and not to be guessed: ``261121100343-51d09f3a2c1b``."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    return f"{time.strftime('%y%m%d%H%M%S', time.gmtime(seconds))}-{(rest << 16) // 10**9:04x}{os.urandom(4).hex()}"


def check_id(text: str) -> str:
    """It is part of a file's name: nothing else may be."""
    if not isinstance(text, str) or not ID.fullmatch(text):
        raise ValueError(f"{text!r:.60} is not the id of a migration")
    return text


def boot_id() -> str:
    """A new one each time that the host is started."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def line(state: str, boot: str, **fields: Any) -> bytes:
    """A record as it is written."""
    text = json.dumps({"state": state, "time": round(time.time(), 3), "boot": boot, **fields}, separators=(",", ":"))
    return b"%08x %s\n" % (zlib.crc32(text.encode()), text.encode())


def parse(content: bytes, where: str) -> tuple[list[Record], int]:
    """The records, and how many bytes they take: what is behind them was never finished. JournalError: what makes no
    sense, and where."""
    records = []
    *lines, rest = content.split(b"\n")
    for number, text in enumerate(lines, 1):
        try:
            crc, blank, body = text[:8], text[8:9], text[9:]
            if blank != b" " or int(crc, 16) != zlib.crc32(body):
                raise ValueError("its checksum is wrong")
            fields = json.loads(body)
            records.append(Record(str(fields.pop("state")), float(fields.pop("time")), str(fields.pop("boot")), fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JournalError(f"{where}, line {number}: {error}") from None
    return records, len(content) - len(rest)


class Directory:
    """The journals of this user on this host. Use `opened`."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd, self.path = fd, path

    @classmethod
    def opened(cls) -> Directory:
        """Made where there is none. PermissionError: it is not ours alone (agents/private.py)."""
        return cls(*private.state_directory("migrate", "journal"))

    def names(self) -> list[tuple[str, str]]:
        """Id and role of every journal, the oldest first."""
        return sorted((found[1], found[2]) for found in map(_NAME.fullmatch, os.listdir(self.fd)) if found)

    def create(self, id: str, role: str, **fields: Any) -> Journal:
        """A new journal that says BEGUN, and is locked by us. It has its name from then on only: who looks through the
        journals meets none that is nobody's and says nothing."""
        name = f"{check_id(id)}.{role}"
        journal = self._journal(f".{name}", id, role, os.O_CREAT | os.O_EXCL)
        try:
            journal.lock()
            journal.append(BEGUN, **fields)
            os.rename(f".{name}", name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            journal.path = os.path.join(self.path, name)
            os.fsync(self.fd)
        except BaseException:
            for each in (f".{name}", name):
                _unlink(each, self.fd)
            journal.close()
            raise
        return journal

    def open(self, id: str, role: str) -> Journal:
        """One that there is, not locked. FileNotFoundError: there is none."""
        return self._journal(f"{check_id(id)}.{role}", id, role, 0)

    def _journal(self, name: str, id: str, role: str, how: int) -> Journal:
        path = os.path.join(self.path, name)
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags | how, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, path) from None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise JournalError(f"{path} is not a file of our own with mode 0600")
            return Journal(fd, id, role, path)
        except BaseException:
            os.close(fd)
            if how & os.O_CREAT:
                _unlink(name, self.fd)
            raise

    def remove(self, id: str, role: str) -> None:
        """A journal that nobody needs any more, and its log."""
        _unlink(f"{check_id(id)}.{role}", self.fd)
        if role == DESTINATION:
            _unlink(f"{id}.log", self.fd)

    def log(self, id: str, pid: object) -> Log:
        """A new one beside the journal, where the destination agent says what it does."""
        name = f"{check_id(id)}.log"
        return Log(private.create(self.fd, name), os.path.join(self.path, name), id, pid)

    def tidy(self) -> None:
        """Remove what those have left who were killed before their journal had its name: nothing had begun."""
        for name in os.listdir(self.fd):
            if name[:1] != "." or not _NAME.fullmatch(name[1:]):
                continue
            try:
                if os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime < time.time() - _UNNAMED:
                    _unlink(name, self.fd)
            except FileNotFoundError:
                pass  # it has its name now

    def socket_path(self, id: str) -> str:
        """Of the socket beside the journal, by way of our descriptor: sun_path has room for 108 bytes only."""
        return f"/proc/self/fd/{self.fd}/{check_id(id)}.socket"

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass  # there is none, or somebody else tidied up


class Journal:
    """One file. Its lock is held for as long as it is open."""

    def __init__(self, fd: int, id: str, role: str, path: str) -> None:
        self.fd, self.id, self.role, self.path = fd, id, role, path
        self._boot = boot_id()

    def lock(self) -> bool:
        """Whether it is ours now: who is in the middle of this migration has it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def reopened(self) -> int:
        """Another descriptor, which has nothing to do with our lock, to be handed down."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, state: str, sync: bool = True, **fields: Any) -> None:
        """One more record; on the disk when this returns, if ``sync``. OSError: it is not there, not even in part."""
        record = line(state, self._boot, **fields)
        written = os.write(self.fd, record)
        if written != len(record):
            # The next record would stand on the same line. Nobody else writes while we do.
            os.ftruncate(self.fd, os.fstat(self.fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        if sync:
            os.fdatasync(self.fd)

    def records(self) -> list[Record]:
        """All of them, in order."""
        content = os.pread(self.fd, _LIMIT + 1, 0)
        if len(content) > _LIMIT:
            raise JournalError(f"{self.path} is larger than any journal")
        return parse(content, self.path)[0]

    def ends_with(self, state: str) -> bool:
        """Whether that is the last state. Quicker than to read it all: the answer to COMMIT waits for this."""
        size = os.fstat(self.fd).st_size
        tail = os.pread(self.fd, _TAIL, max(0, size - _TAIL)).split(b"\n")
        return not tail[-1] and len(tail) > 1 and f'{{"state":"{state}",'.encode() in tail[-2]

    def mend(self) -> None:
        """Cut off a record that was not finished. Only for who holds the lock, while nobody writes."""
        content = os.pread(self.fd, _LIMIT + 1, 0)
        whole = parse(content, self.path)[1]
        if whole != len(content):
            os.ftruncate(self.fd, whole)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

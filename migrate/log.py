"""``--log FILE``: what a display is told, as lines of JSON for programs, whatever is drawn beside it.

Each line has ``time`` (seconds since 1970), ``elapsed`` (seconds since the command began), ``id`` of the migration
(empty until it has one), ``pid``, ``dest`` and ``event``, and what the event needs:

    begun       comm, version
    phase       name, detail
    round       number, pages, bytes_sent, seconds, dirty_pages_after
    note, detail, warning    text
    moved       the object of --json
    failed      exit_code, error

Nothing is written while the process stands still: what is told then comes right after, with the time at which it was.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from migrate import __version__
from migrate.errors import UsageError
from migrate.options import Options
from migrate.progress import Display
from migrate.report import Report, Round


def open_log(path: str) -> int:
    """A descriptor to append to, of a file that is made with mode 0600. UsageError: why not."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise UsageError(f"--log {path}: {error.strerror}") from None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_uid not in (0, os.geteuid()):
        os.close(fd)
        raise UsageError(f"--log {path}: the file belongs to user {found.st_uid}")
    return fd


class Logged:
    """A display that writes down what it is told, and passes it on."""

    def __init__(
        self, inner: Display, fd: int, options: Options, comm: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.id, self.committing, self.decided = "", False, inner.decided
        self._inner, self._fd, self._clock = inner, fd, clock
        self._common = {"pid": options.pid, "dest": options.dest}
        self._began = clock()
        self._held: list[bytes] | None = None
        self._write("begun", comm=comm, version=__version__)

    @property
    def rounds(self) -> list[Round]:
        return self._inner.rounds

    def phase(self, name: str, detail: str = "") -> None:
        self._write("phase", name=name, detail=detail)
        self._inner.phase(name, detail)

    def round_started(self, number: int, pages: int) -> None:
        self._inner.round_started(number, pages)

    def sent(self, bytes_total: int, pages_total: int, rate: float) -> None:
        self._inner.sent(bytes_total, pages_total, rate)

    def round_finished(self, round: Round) -> None:
        self._inner.round_finished(round)
        self._write("round", number=len(self.rounds), **asdict(round))

    def note(self, text: str) -> None:
        self._write("note", text=text)
        self._inner.note(text)

    def detail(self, text: str) -> None:
        self._write("detail", text=text)
        self._inner.detail(text)

    def warn(self, text: str) -> None:
        self._write("warning", text=text)
        self._inner.warn(text)

    def suspend(self) -> None:
        if self._held is None:
            self._held = []
        self._inner.suspend()

    def resume(self) -> None:
        self._inner.resume()
        self._flush()

    def tick(self) -> None:
        self._inner.tick()

    def close(self) -> None:
        self._inner.close()
        self._flush()

    def finished(self, report: Report) -> None:
        told = json.loads(report.json())
        told.pop("id", None)  # ours, as in every line
        self._write("moved" if report.ok else "failed", **told)
        self._inner.finished(report)

    def failed(self, exit_code: int, error: str) -> None:
        """The last line of one that came to nothing."""
        self._write("failed", exit_code=exit_code, error=error)

    def _flush(self) -> None:
        held, self._held = self._held or [], None
        for line in held:
            self._put(line)

    def _write(self, event: str, **fields: Any) -> None:
        now = self._clock()
        about = {"time": round(now, 6), "elapsed": round(now - self._began, 6), "id": self.id, **self._common}
        line = json.dumps({**about, "event": event, **fields}).encode() + b"\n"
        if self._held is not None:
            self._held.append(line)
        else:
            self._put(line)

    def _put(self, line: bytes) -> None:
        """A full disk ends the log, and not the migration."""
        if self._fd >= 0:
            try:
                os.write(self._fd, line)
            except OSError as error:
                fd, self._fd = self._fd, -1
                os.close(fd)
                self._inner.warn(f"the log is not written any further: {error.strerror}")

    def end(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

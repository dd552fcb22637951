"""What the user sees while a process moves.

The coordinator tells a `Display` what happens; which one it is, it does not know. All output goes to standard error,
except for the sentence at the end. A display never fails: when its terminal is gone it falls silent, for a
migration must not die of a closed window half-way through its commit.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TextIO

from migrate.report import Report, Round, subject
from migrate.wording import count, printable, rate, seconds, size

PAGE = 4096


class Display(Protocol):
    """What the coordinator calls. Every method returns at once. ``id``: of the migration, once it has one;
    ``committing``: COMMIT is sent, or what else is ``decided``, so that it is too late to roll back."""

    id: str
    committing: bool
    decided: str

    @property
    def rounds(self) -> list[Round]:
        """The rounds that have ended."""

    def phase(self, name: str, detail: str = "") -> None:
        """A new phase begins: ``connecting``, ``preflight``, ``copying``, ``freezing``, ``rolling back``…"""

    def round_started(self, number: int, pages: int) -> None:
        """Round ``number`` (from 1) begins and has ``pages`` to send."""

    def sent(self, bytes_total: int, pages_total: int, rate: float) -> None:
        """Sent since the migration began, and bytes per second just now. Call it as often as you like."""

    def round_finished(self, round: Round) -> None:
        """The round is over."""

    def note(self, text: str) -> None:
        """Something worth knowing: ``pid 812 is taken on node2: it gets a new PID namespace``."""

    def detail(self, text: str) -> None:
        """Something worth knowing with -v: why another round, which cipher."""

    def warn(self, text: str) -> None:
        """Something that the user may want to do something about."""

    def suspend(self) -> None:
        """From now on draw nothing (the process is frozen, or a password is being asked for); keep it for later."""

    def resume(self) -> None:
        """Draw again, beginning with what came in between."""

    def tick(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """Leave the terminal as it should be. Nothing is drawn afterwards but what `finished` says."""

    def finished(self, report: Report) -> None:
        """The sentence at the end."""


class Quiet:
    """Says nothing, and remembers the rounds."""

    id = ""
    committing = False
    decided = "COMMIT was sent"

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None, verbose: int = 0) -> None:
        self.rounds: list[Round] = []
        self.verbose = verbose
        self._out, self._err = stdout or sys.stdout, stderr or sys.stderr
        self._held: list[str] | None = None  # lines kept back while suspended

    def phase(self, name: str, detail: str = "") -> None:
        pass

    def round_started(self, number: int, pages: int) -> None:
        pass

    def sent(self, bytes_total: int, pages_total: int, rate: float) -> None:
        pass

    def round_finished(self, round: Round) -> None:
        self.rounds.append(round)

    def note(self, text: str) -> None:
        pass

    def detail(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def suspend(self) -> None:
        if self._held is None:
            self._held = []

    def resume(self) -> None:
        held, self._held = self._held or [], None
        for line in held:
            self._write(line)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        self.resume()

    def finished(self, report: Report) -> None:
        pass

    def _say(self, line: str) -> None:
        if self._held is not None:
            self._held.append(line)
        else:
            self._write(line)

    def _write(self, line: str) -> None:
        put(self._err, line)


class Plain(Quiet):
    """One line for each event: for logs, pipes and --json."""

    def __init__(
        self, stdout: TextIO | None = None, stderr: TextIO | None = None, verbose: int = 0, sentence: bool = True
    ) -> None:
        super().__init__(stdout, stderr, verbose)
        self._sentence_to = self._out if sentence else self._err
        self._number = 0

    def phase(self, name: str, detail: str = "") -> None:
        self._say(f"{name}: {printable(detail)}" if detail else name)

    def round_started(self, number: int, pages: int) -> None:
        self._number = number

    def round_finished(self, round: Round) -> None:
        super().round_finished(round)
        self._say(f"round {self._number or len(self.rounds)}: {describe_round(round)}")

    def note(self, text: str) -> None:
        self._say(f"note: {printable(text)}")

    def detail(self, text: str) -> None:
        if self.verbose:
            self._say(printable(text))

    def warn(self, text: str) -> None:
        self._say(f"warning: {printable(text)}")

    def finished(self, report: Report) -> None:
        self.close()
        put(self._sentence_to, report.sentence())
        if report.stdio_log:
            put(self._sentence_to, stdio_log_sentence(report))
        if self.verbose:
            put(self._err, describe_downtime(report))


def describe_round(round: Round) -> str:
    """``105,472 pages, 412 MiB in 629.0 ms (655 MiB/s), 8,191 pages dirtied meanwhile (51 MiB/s)``."""
    return (
        f"{count(round.pages, 'page')}, {size(round.bytes_sent)} in {seconds(round.seconds)} "
        f"({rate(sent_rate(round))}), {count(round.dirty_pages_after, 'page')} dirtied meanwhile "
        f"({rate(dirty_rate(round))})"
    )


def dirty_rate(round: Round) -> float:
    """Bytes per second that the process dirtied during the round."""
    return _per_second(round.dirty_pages_after * PAGE, round)


def sent_rate(round: Round) -> float:
    """Bytes per second that went over the wire during the round."""
    return _per_second(round.bytes_sent, round)


def _per_second(amount: float, round: Round) -> float:
    return amount / max(round.seconds, 1e-6)


def stdio_log_sentence(report: Report) -> str:
    """Where the output goes that went to a terminal here."""
    return f"its output goes on in {printable(report.stdio_log or '')} on {printable(report.dest)}"


def describe_downtime(report: Report) -> str:
    """``downtime: stop 0.4 ms, collect 1.2 ms, …; dirty pages by pagemap-scan; vDSO remap``."""
    phases = ", ".join(f"{name} {value:.1f} ms" for name, value in report.phases_ms.items())
    return f"downtime: {phases or 'not measured'}; dirty pages by {report.tracker}; vDSO {report.vdso}"


def put(stream: TextIO, line: str) -> None:
    """Write a line to a stream that may be gone (a closed terminal, a pipe to `head`): then no one is there to tell."""
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except ValueError:  # written to after it was closed
        return
    except OSError:
        # What is left in its buffer would be tried again at Python's end, which makes that an exit status of 120.
        with suppress(ValueError), open(os.devnull, "w") as null:  # ValueError: a stream that is no file
            os.dup2(null.fileno(), stream.fileno())


def choose(
    *,
    pid: int,
    comm: str,
    dest: str,
    quiet: bool,
    json: bool,
    verbose: int,
    clock: Callable[[], float] = time.monotonic,
) -> Display:
    """The display that fits the options and the terminal."""
    if quiet:
        return Quiet()
    if json or not sys.stderr.isatty():
        return Plain(verbose=verbose, sentence=not json)
    from migrate.live import Live  # rich takes 40 ms to import: only for who sees it

    return Live(subject(pid, comm), printable(dest), verbose=verbose, clock=clock)

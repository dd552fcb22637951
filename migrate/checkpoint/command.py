"""`migrate dump`, `migrate restore` and `migrate show` as commands: what is said, and the exit code."""

from __future__ import annotations

import functools
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from migrate.checkpoint.attend import Attendant
from migrate.checkpoint.directory import found_at, opened
from migrate.checkpoint.dump import dump
from migrate.checkpoint.files import FilePages
from migrate.checkpoint.jobs import STREAM, Dump, Job, Outcome, Restore, Show
from migrate.checkpoint.restore import bring_back
from migrate.checkpoint.stream import StreamPages, StreamReader, StreamTarget
from migrate.checkpoint.target import directory_target
from migrate.errors import ImageError, Interrupted, MigrateError, Refused, UsageError
from migrate.progress import Display, choose, put
from migrate.report import subject
from migrate.supervision import blame, supervise
from migrate.wording import printable


def run(job: Job) -> int:
    """Returns the exit code."""
    if isinstance(job, Show):
        return _show(job)
    if isinstance(job, Restore) and job.stdio:
        with Attendant() as attendant:
            return _run(job, attendant)
    return _run(job)


def _run(job: Dump | Restore, attendant: Attendant | None = None) -> int:
    display = choose(
        pid=job.pid if isinstance(job, Dump) else 0,
        comm=_comm(job.pid) if isinstance(job, Dump) else "",
        dest=job.directory,
        quiet=job.quiet,
        json=job.json,
        verbose=job.verbose,
    )
    begun = time.monotonic()
    try:
        try:
            outcome = trio.run(supervise, job, display, _doing(job, attendant))
        finally:
            display.close()
    except KeyboardInterrupt:  # before the signal was taken over
        return _failed(Interrupted(), job, begun)
    except (Exception, BaseExceptionGroup) as error:
        return _failed(error, job, begun)
    _finished(outcome, job)
    if attendant is not None:
        assert outcome.new_pid is not None and outcome.overseer is not None
        return attendant.attend(outcome.new_pid, outcome.overseer)
    return 0


def _show(job: Show) -> int:
    from migrate.checkpoint.show import show

    try:
        text = show(job.directory, job.json)
    except (ImageError, OSError) as error:
        put(sys.stderr, f"migrate: {printable(str(error))}")
        return error.exit_code if isinstance(error, ImageError) else 5
    put(sys.stdout, text)
    return 0


def _doing(
    job: Dump | Restore, attendant: Attendant | None
) -> Callable[[Dump | Restore, Display], Awaitable[Outcome]]:
    if isinstance(job, Dump):
        return functools.partial(_dump, job)
    return functools.partial(_restore, job, attendant)


async def _dump(job: Dump, _: Dump | Restore, display: Display) -> Outcome:
    if job.directory == STREAM:
        if os.isatty(1):
            raise UsageError("a checkpoint is not for a terminal: redirect standard output")
        return await dump(job, display, StreamTarget(1))
    with directory_target(job.directory, job.track) as target:
        return await dump(job, display, target)


async def _restore(job: Restore, attendant: Attendant | None, _: Dump | Restore, display: Display) -> Outcome:
    outcome = await _restored(job, display)
    if attendant is not None and outcome.new_pid is not None:
        attendant.meet(outcome.new_pid)
    return outcome


async def _restored(job: Restore, display: Display) -> Outcome:
    if job.directory == STREAM:
        if os.isatty(0):
            raise UsageError("a checkpoint is not typed: redirect standard input")
        reader = StreamReader(0)
        checkpoint = await trio.to_thread.run_sync(reader.checkpoint, abandon_on_cancel=True)
        return await bring_back(job, display, STREAM, checkpoint, StreamPages(reader, checkpoint))
    path, _series = found_at(job.directory)
    with opened(path) as found:
        return await bring_back(job, display, path, found.checkpoint, FilePages(found))


def _finished(outcome: Outcome, job: Dump | Restore) -> None:
    if job.verbose:
        phases = ", ".join(f"{name} {value:.1f} ms" for name, value in outcome.phases_ms.items())
        put(sys.stderr, phases)
    taken = job.stdio if isinstance(job, Restore) else job.directory == STREAM
    stream = sys.stderr if taken else sys.stdout
    if job.json:
        put(stream, outcome.json())
    elif not job.quiet:
        put(stream, outcome.sentence())
        if outcome.stdio_log:
            put(stream, f"its output goes on in {printable(outcome.stdio_log)}")


def _failed(error: BaseException, job: Dump | Restore, begun: float) -> int:
    blamed = blame(error)
    doing = "dumped" if isinstance(job, Dump) else "restored"
    pid = job.pid if isinstance(job, Dump) else None
    who = subject(pid, _comm(pid)) if pid is not None else printable(job.directory)
    if isinstance(blamed, MigrateError):
        code, text = blamed.exit_code, str(blamed)
    else:
        code, text = 5, f"unexpected {type(blamed).__name__}: {blamed} (-vv shows where)"
    if isinstance(blamed, Interrupted):
        text = text or ("interrupted: the process runs on" if pid is not None else "interrupted: nothing of it is left")
    if job.verbose >= 2:
        put(sys.stderr, "".join(traceback.format_exception(error)).rstrip())
    said = printable(text)
    if isinstance(blamed, Refused):
        reasons = "\n".join(f"  - {printable(str(problem))}" for problem in blamed.problems)
        said = f"{who} cannot be {doing}; nothing was changed:\n{reasons}"
    put(sys.stderr, f"migrate: {said}")
    if job.json:
        outcome = Outcome(False, doing, job.directory, pid, total_s=time.monotonic() - begun, error=text)
        put(sys.stdout, outcome.json())
    return code


def _comm(pid: int) -> str:
    """For sentences only."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "surrogateescape").rstrip("\n")
    except OSError:
        return ""

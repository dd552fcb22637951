"""`migrate PID DEST`: runs the migration that the command line asks for, and says how it went."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from migrate.arguments import parse
from migrate.errors import Interrupted, MigrateError, Refused, UsageError
from migrate.log import Logged, open_log
from migrate.options import Inquiry, Options
from migrate.progress import Display, choose, put
from migrate.report import Report, subject
from migrate.supervision import blame, supervise
from migrate.wording import printable

Mover = Callable[[Options, Display], Awaitable[Report]]


def main(argv: Sequence[str] | None = None, move: Mover | None = None) -> int:
    """The command. ``move`` is the migration itself (`migrate.coordinator.move`). Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    log_fd: int | None = None
    try:
        options = parse(arguments)
        if isinstance(options, Options) and options.log is not None:
            log_fd = open_log(options.log)
    except SystemExit as done:  # --help, --version
        return int(done.code or 0)
    except UsageError as error:
        put(sys.stderr, f"migrate: {printable(str(error))}\nTry 'migrate --help'.")
        if "--json" in arguments:
            put(sys.stdout, Report(False, None, "", "", error=str(error)).json())
        return error.exit_code
    if isinstance(options, Inquiry):
        return _inquire(options)
    if not isinstance(options, Options):
        from migrate.checkpoint.command import run

        return run(options)
    comm = _comm(options.pid)
    display = choose(
        pid=options.pid, comm=comm, dest=options.dest, quiet=options.quiet, json=options.json, verbose=options.verbose
    )
    log = Logged(display, log_fd, options, comm) if log_fd is not None else None
    try:
        return _told_to(options, log or display, log, comm, move)
    finally:
        if log is not None:
            log.end()


def _told_to(options: Options, display: Display, log: Logged | None, comm: str, move: Mover | None) -> int:
    began = time.monotonic()
    try:
        try:
            report = _run(options, display, move)
        finally:
            display.close()
    except KeyboardInterrupt:  # before the migration took over the signal
        return _failed(Interrupted(), options, comm, display, began, log)
    except (Exception, BaseExceptionGroup) as error:
        return _failed(error, options, comm, display, began, log)
    display.finished(report)
    if options.json:
        put(sys.stdout, report.json())
    return 0 if report.ok else 5


def _inquire(inquiry: Inquiry) -> int:
    from migrate.inquiry import run

    try:
        return run(inquiry)
    except KeyboardInterrupt:
        error: BaseException = Interrupted("interrupted")
    except (Exception, BaseExceptionGroup) as failure:
        error = blame(failure)
        if inquiry.verbose >= 2:
            put(sys.stderr, "".join(traceback.format_exception(failure)).rstrip())
    put(sys.stderr, f"migrate: {printable(str(error))}")
    return error.exit_code if isinstance(error, MigrateError) else 5


def _run(options: Options, display: Display, move: Mover | None) -> Report:
    import trio  # here, because --help need not wait for it

    if move is None:
        from migrate.coordinator import move as coordinator_move

        move = coordinator_move
    return trio.run(supervise, options, display, move)


def _failed(
    error: BaseException, options: Options, comm: str, display: Display, began: float, log: Logged | None
) -> int:
    """Say what went wrong; the exit code."""
    blamed = blame(error)
    who = subject(options.pid, comm)
    if isinstance(blamed, MigrateError):
        code, text = blamed.exit_code, str(blamed)
    else:
        code, text = 5, f"unexpected {type(blamed).__name__}: {blamed} (-vv shows where)"
    if isinstance(blamed, Interrupted):
        text = text or f"interrupted and rolled back: {who} runs on here"
    if log is not None:
        log.failed(code, text)
    if options.verbose >= 2:
        put(sys.stderr, "".join(traceback.format_exception(error)).rstrip())
    put(sys.stderr, f"migrate: {_told(blamed, text, who, options.dest)}")
    if options.json:
        report = Report(
            False,
            options.pid,
            comm,
            options.dest,
            total_s=time.monotonic() - began,
            rounds=tuple(display.rounds),
            bytes_sent=sum(r.bytes_sent for r in display.rounds),
            error=text,
            id=blamed.migration if isinstance(blamed, MigrateError) else None,
        )
        put(sys.stdout, report.json())
    return code


def _told(error: BaseException, text: str, who: str, dest: str) -> str:
    if isinstance(error, Refused):
        reasons = "\n".join(f"  - {printable(str(problem))}" for problem in error.problems)
        return f"{who} cannot be moved to {printable(dest)}; nothing was changed:\n{reasons}"
    return printable(text)


def _comm(pid: int) -> str:
    """For the display only; whether there is such a process is the preflight's business."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "surrogateescape").rstrip("\n")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())

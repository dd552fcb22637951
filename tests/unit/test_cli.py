"""The command from outside: exit codes, what is said where, and signals, around a migration that is only played."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from migrate import errors
from migrate.cli import Mover, main
from migrate.options import Options
from migrate.progress import Display
from migrate.report import Report, Round
from migrate.supervision import blame

Capture = pytest.CaptureFixture[str]
ME = str(os.getpid())


def played(error: BaseException | None = None) -> Mover:
    async def move(options: Options, display: Display) -> Report:
        display.phase("connecting", options.dest)
        display.round_started(1, 10)
        display.sent(40960, 10, 1e6)
        display.round_finished(Round(10, 40960, 0.5, 2))
        await trio.sleep(0)
        if error is not None:
            raise error
        return Report(
            True, options.pid, "victim", options.dest, 77, 11.44, 1.94, (Round(10, 40960, 0.5, 2),), 40960, "digest",
            "remap", {"stop": 0.5}, stdio_log="/tmp/log",
        )  # fmt: skip

    return move


def test_moved(capsys: Capture) -> None:
    assert main([ME, "node2"], played()) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"moved {ME} (victim) to node2 as pid 77: 1 round, 40 KiB sent in 1.9 s, down for 11.4 ms\n"
        "its output goes on in /tmp/log on node2\n"
    )
    assert err == (
        "connecting: node2\n"
        "round 1: 10 pages, 40 KiB in 500.0 ms (80 KiB/s), 2 pages dirtied meanwhile (16 KiB/s)\n"
    )  # fmt: skip


def test_quiet_says_nothing(capsys: Capture) -> None:
    assert main(["-q", ME, "node2"], played()) == 0
    assert capsys.readouterr() == ("", "")


def test_verbose_splits_the_downtime(capsys: Capture) -> None:
    assert main(["-v", ME, "node2"], played()) == 0
    assert "downtime: stop 0.5 ms; dirty pages by digest; vDSO remap\n" in capsys.readouterr().err


def test_json_is_all_that_goes_to_standard_output(capsys: Capture) -> None:
    assert main(["--json", ME, "node2"], played()) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["new_pid"] == 77 and out.count("\n") == 1
    assert f"moved {ME} (victim)" in err


PROBLEMS = [
    errors.Problem("pid 812 fd 5", "an io_uring instance", "close it first"),
    errors.Problem("pid 812", "a \x1bzombie"),
]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.UsageError("no"), 2, "migrate: no\n"),
        (errors.Unreachable("node2: connection refused"), 4, "migrate: node2: connection refused\n"),
        (errors.Failed("restoring fd 7: openat: No such file"), 5, "migrate: restoring fd 7: openat: No such file\n"),
        (errors.InDoubt("the connection broke"), 6, "migrate: the connection broke\n"),
        (errors.Interrupted("the user went away"), 130, "migrate: the user went away\n"),
        (KeyError("x"), 5, "migrate: unexpected KeyError: 'x' (-vv shows where)\n"),
        (ExceptionGroup("", [errors.Failed("one"), errors.InDoubt("two")]), 6, "migrate: two\n"),
    ],
)
def test_each_error_has_its_exit_code_and_one_message(
    error: BaseException, code: int, said: str, capsys: Capture
) -> None:
    assert main([ME, "node2"], played(error)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(said) and "Traceback" not in err
    assert main([ME, "node2", "--json"], played(error)) == code
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["ok"] is False and told["error"] in said and told["pid"] == int(ME) and told["new_pid"] is None
    assert told["rounds"] == [{"pages": 10, "bytes_sent": 40960, "seconds": 0.5, "dirty_pages_after": 2}]
    assert told["total_s"] >= 0 and told["bytes_sent"] == 40960


def test_refused_lists_every_reason(capsys: Capture) -> None:
    assert main([ME, "node2"], played(errors.Refused(PROBLEMS))) == 3
    err = capsys.readouterr().err
    assert "cannot be moved to node2; nothing was changed:\n" in err
    assert "  - pid 812 fd 5: an io_uring instance; close it first\n  - pid 812: a \\x1bzombie\n" in err


def test_tracebacks_are_for_vv(capsys: Capture) -> None:
    assert main(["-vv", ME, "node2"], played(errors.Failed("no"))) == 5
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_usage_errors(capsys: Capture) -> None:
    assert main(["x", "node2"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "'x' is not a process number" in err and "--help" in err
    assert main(["x", "node2", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False and told["pid"] is None and "'x' is not a process number" in told["error"]


def test_help_and_version_return_zero(capsys: Capture) -> None:
    assert main(["--help"]) == 0 and main(["--version"]) == 0
    assert "exit codes:" in capsys.readouterr().out


def test_blame_prefers_doubt_to_bugs_to_sentences() -> None:
    doubt, bug, sentence = errors.InDoubt("d"), TypeError("b"), errors.Failed("s")
    assert blame(ExceptionGroup("", [sentence, ExceptionGroup("", [bug, doubt])])) is doubt
    assert blame(ExceptionGroup("", [sentence, bug])) is bug
    assert blame(BaseExceptionGroup("", [KeyboardInterrupt(), sentence])) is sentence


# Signals: the command as a process of its own, for they belong to whole processes.

_SCRIPT = """
import sys, trio
from migrate.cli import main
from migrate.report import Report

async def move(options, display):
    display.phase("copying")
    try:
        if options.dest == "committed":
            with trio.CancelScope(shield=True):
                await trio.sleep(0.3)
            return Report(True, options.pid, "x", options.dest, 5, 1.0, 1.0)
        await trio.sleep(60)
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)
            display.note("all undone")

sys.exit(main(move=move))
"""


def interrupted(
    arguments: list[str], act: Callable[[subprocess.Popen[str]], object], ignore: signal.Signals | None = None
) -> tuple[int, str, str]:
    """Start the command, ``act`` once it is copying; its exit code and what it said."""
    before = None
    if ignore is not None:
        before = signal.signal(ignore, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
    finally:
        if before is not None and ignore is not None:
            signal.signal(ignore, before)
    with process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "copying\n"
            act(process)
            out, err = process.communicate(timeout=20)
            return process.returncode, out, err
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_rolls_back(number: signal.Signals) -> None:
    code, out, err = interrupted([ME, "node2"], lambda process: process.send_signal(number))
    assert (code, out) == (130, "")
    assert err.startswith("rolling back: interrupted\nnote: all undone\nmigrate: interrupted and rolled back: ")
    assert err.endswith("runs on here\n")


def test_a_second_signal_only_asks_for_patience() -> None:
    def twice(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)

    code, _, err = interrupted([ME, "node2"], twice)
    assert code == 130
    assert "note: still rolling back; the process stays here\nnote: all undone\n" in err


def test_interrupted_in_json() -> None:
    code, out, _ = interrupted([ME, "node2", "--json"], lambda process: process.send_signal(signal.SIGINT))
    told = json.loads(out)
    assert code == 130 and told["ok"] is False and told["error"].startswith("interrupted and rolled back")


def test_a_signal_after_the_commit_changes_nothing() -> None:
    code, out, _ = interrupted([ME, "committed"], lambda process: process.send_signal(signal.SIGINT))
    assert code == 0 and out.startswith(f"moved {ME} (x) to committed as pid 5")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    code, _, _ = interrupted([ME, "committed"], lambda process: process.send_signal(signal.SIGHUP), signal.SIGHUP)
    assert code == 0

    def hang_up_then_interrupt(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)

    _, _, err = interrupted([ME, "node2"], hang_up_then_interrupt, signal.SIGHUP)
    assert "still rolling back" not in err  # SIGINT was the first that counted


def test_output_that_nobody_reads_does_not_change_the_outcome() -> None:
    def stop_reading(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None

    code, _, _ = interrupted([ME, "committed"], stop_reading)
    assert code == 0

"""``--log``: one line for each event, whatever becomes of the migration, and none while the process stands still."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from migrate.cli import main
from migrate.errors import Failed
from migrate.log import Logged, open_log
from migrate.options import Options
from migrate.progress import Display, Quiet
from migrate.report import Report, Round

ME = str(os.getpid())
ROUND = Round(10, 40960, 0.5, 2)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def moves(options: Options, display: Display) -> Report:
    display.phase("connecting", options.dest)
    display.id = "7-7"
    display.round_started(1, 10)
    display.round_finished(ROUND)
    display.detail("because")
    await trio.sleep(0)
    return Report(True, options.pid, "victim", options.dest, 77, 11.44, 1.94, (ROUND,), 40960, "digest", "remap")


async def fails(options: Options, display: Display) -> Report:
    display.warn("beware")
    await trio.sleep(0)
    raise Failed("it did not work")


def test_what_happens_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    assert main(["-q", "--log", str(path), ME, "node2"], moves) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = lines(path)
    assert [line["event"] for line in said] == ["begun", "phase", "round", "detail", "moved"]
    assert all(line["pid"] == int(ME) and line["dest"] == "node2" and line["elapsed"] >= 0 for line in said)
    assert [line["id"] for line in said] == ["", "", "7-7", "7-7", "7-7"]
    assert said[1]["name"] == "connecting" and said[2]["pages"] == 10 and said[4]["downtime_ms"] == 11.44
    assert main(["-q", "--log", str(path), ME, "node2"], fails) == 5
    assert [line["event"] for line in lines(path)[5:]] == ["begun", "warning", "failed"]
    assert lines(path)[-1]["error"] == "it did not work" and lines(path)[-1]["exit_code"] == 5
    assert capsys.readouterr().err == "migrate: it did not work\n"


def test_nothing_is_written_while_the_process_stands_still(tmp_path: Path) -> None:
    path, now = tmp_path / "log", [100.0]
    log = Logged(Quiet(), open_log(str(path)), Options(1, "node2"), "x", lambda: now[0])
    log.suspend()
    now[0] = 101.5
    log.phase("freezing")
    assert len(lines(path)) == 1
    now[0] = 109.0
    log.resume()
    log.end()
    assert [(line["event"], line["time"], line["elapsed"]) for line in lines(path)] == [
        ("begun", 100.0, 0), ("phase", 101.5, 1.5),
    ]  # fmt: skip


def test_a_file_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to("elsewhere")
    foreign = tmp_path / "foreign"
    foreign.touch()
    os.chown(foreign, 4242, -1)
    for path, says in ((tmp_path, "Is a directory"), (link, "symbolic links"), (foreign, "belongs to user 4242")):
        assert main(["--log", str(path), ME, "node2"], moves) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_ends_the_log_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--log", "/dev/full", ME, "node2"], moves) == 0
    out, err = capsys.readouterr()
    assert err.count("the log is not written any further: No space left on device") == 1 and "moved" in out

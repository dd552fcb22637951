"""Programs of others go to disk and back in the middle of their work, and what they made of it is checked."""

from __future__ import annotations

import lzma
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.checkpoints import Job, Keep, dump, keeping, restore, until_longer, whole_lines
from tests.tasks import status_field, wait_until
from tests.victims import HERE, check_counter

pytestmark = pytest.mark.timeout(300)  # commands that are started one after the other, on a machine that may be busy
SQLITE = """
import os, sqlite3, sys
database, stop = sys.argv[1:]
connection = sqlite3.connect(database)
connection.execute("create table numbers (number integer primary key, text text)")
number = 0
while not os.path.exists(stop):
    with connection:
        for _ in range(20):
            connection.execute("insert into numbers values (?, ?)", (number, "x" * (number % 500)))
            number += 1
connection.close()
"""


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with keeping() as add:
        yield add


def back_and_forth(job: Job, directory: Path, keep: Keep, times: int = 3) -> Job:
    """Dumped and restored, again and again, in a series."""
    for _ in range(times):
        keep(job)
        dump(job, directory, "--track")
        job, told = restore(directory)
        assert told["new_pid"] == told["pid"] == job.pid
    return keep(job)


def test_python_with_threads(tmp_path: Path, keep: Keep) -> None:
    log = tmp_path / "log"
    job = Job.start(sys.executable, str(HERE / "counter.py"), str(log), "8")
    until_longer(log, 100)
    back_and_forth(job, tmp_path / "series", keep)
    until_longer(log, 100)
    assert check_counter(whole_lines(log), 8) > 200


def test_xz(tmp_path: Path, keep: Keep) -> None:
    """Compresses to what can be decompressed. It is stopped when it has come so far, so that it is not done before."""
    chance = random.Random(1)
    words = [chance.randbytes(chance.randrange(2, 12)) for _ in range(3000)]
    content = b"".join(chance.choice(words) for _ in range(600_000))
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(content)
    program = shutil.which("xz")
    assert program is not None
    with plain.open("rb") as stdin, packed.open("wb") as stdout:
        job = Job.start(program, "-9e", "-T1", "-c", stdin=stdin, stdout=stdout)
    for part in (1, 2):
        wait_until("so far", lambda job=job, part=part: _at(job, 0) > part << 20, 60)
        job.signal(signal.SIGSTOP)
        wait_until("stopped", lambda job=job: status_field(job.pid, "State")[:1] == ["T"])
        assert _at(job, 0) < len(content)
        job = back_and_forth(job, tmp_path / "series", keep, 1)
        assert status_field(job.pid, "State")[:1] == ["T"]
        job.signal(signal.SIGCONT)
    job.wait_gone(60)
    assert lzma.decompress(packed.read_bytes()) == content


def _at(job: Job, number: int) -> int:
    """Where it is in a file."""
    return int(Path(f"/proc/{job.pid}/fdinfo/{number}").read_text().split()[1])


def test_sqlite(tmp_path: Path, keep: Keep) -> None:
    """No row is lost, and no transaction half done."""
    database, stop = tmp_path / "database", tmp_path / "stop"
    job = Job.start(sys.executable, "-c", SQLITE, str(database), str(stop))

    def further(count: int) -> None:
        wait_until("inserting", lambda: database.exists() and database.stat().st_size > count, 30)

    further(1 << 17)
    job = back_and_forth(job, tmp_path / "series", keep)
    further(database.stat().st_size + (1 << 16))
    stop.write_text("")
    job.wait_gone()
    with sqlite3.connect(database) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("select number, length(text) from numbers order by number").fetchall()
    connection.close()
    assert len(rows) % 20 == 0 and rows == [(number, number % 500) for number in range(len(rows))]

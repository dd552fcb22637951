"""`migrate dump` and `migrate restore` of processes of this machine that check themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.checkpoints import Job, dump, reap_overseers, restore, until_longer, whole_lines
from tests.victims import Victims, check_counter

Keep = Callable[[Job], Job]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Ends what it is given."""
    kept: list[Job] = []

    def add(job: Job) -> Job:
        kept.append(job)
        return job

    yield add
    for job in kept:
        job.close()
    reap_overseers()


def counting(victims: Victims, log: Path, threads: int = 4) -> Job:
    job = Job.start(victims("counter"), str(log), str(threads), "1000")
    until_longer(log)
    return job


def test_to_disk_and_back(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """With its number, and no line lost or written twice."""
    log, directory = tmp_path / "log", tmp_path / "checkpoint"
    job = keep(counting(victims, log))
    told = dump(job, directory)
    assert told["ok"] and told["pid"] == job.pid and told["pages"] > 10 and not told["leave_running"]
    assert sorted(path.name for path in directory.iterdir()) == ["image", "manifest", "pages", "sums"]
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())
    before = log.read_bytes()
    again, told = restore(directory)
    keep(again)
    assert told["new_pid"] == job.pid and log.read_bytes().startswith(before)
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40

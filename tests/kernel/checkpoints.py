"""Dumps and restores processes by the real command, as a user would."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.moves import PROGRAM
from tests.tasks import PATIENCE, children, status_field, wait_until

NULL = subprocess.DEVNULL


class Job:
    """A process that a test has started, or one that was restored: our child now, as tests adopt orphans."""

    def __init__(self, pid: int, popen: subprocess.Popen[Any] | None = None) -> None:
        self.pid, self.popen = pid, popen
        self._closed = self._reaped = False
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def start(cls, *command: str, **options: Any) -> Job:
        """With /dev/null for standard streams where nothing else is said, and a session of its own."""
        streams = {name: options.pop(name, NULL) for name in ("stdin", "stdout", "stderr")}
        popen = subprocess.Popen(command, start_new_session=True, **streams, **options)
        return cls(popen.pid, popen)

    @property
    def alive(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def wait_gone(self, seconds: float = 30.0) -> None:
        if not select.select([self._pidfd], [], [], seconds * PATIENCE)[0]:
            raise TimeoutError(f"process {self.pid} still runs")
        self._reap()

    def _reap(self) -> None:
        """A zombie has its number."""
        if self._reaped:
            return
        self._reaped = True
        if self.popen is not None:
            self.popen.wait()
            return
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            wait_until("reaped", lambda: not status_field(self.pid, "State"))

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """It has ended, and is reaped by whoever is its parent."""
        if self._closed:
            return
        self._closed = True
        if self.alive:
            self.signal(signal.SIGKILL)
            self.wait_gone()
        self._reap()
        os.close(self._pidfd)


def streams(popen: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Its standard streams, which are pipes."""
    assert popen.stdin is not None and popen.stdout is not None and popen.stderr is not None
    return popen.stdin, popen.stdout, popen.stderr


def migrate(*arguments: str | Path, code: int = 0, **options: Any) -> tuple[dict[str, Any], str]:
    """``migrate --json …``: its object, and all that it said. An AssertionError for another exit code."""
    command = [PROGRAM, *map(str, arguments[:1]), "--json", *map(str, arguments[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100 * PATIENCE, **options)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {}, done.stderr


def dump(job: Job, directory: Path, *options: str, **more: Any) -> dict[str, Any]:
    """What the command told. Without --leave-running the process is gone."""
    told, _ = migrate("dump", *options, str(job.pid), directory, **more)
    if "--leave-running" not in options:
        assert not job.alive
        job.wait_gone()
        if job.popen is not None:
            assert job.popen.wait() == -signal.SIGKILL
    return told


def restore(directory: Path, *options: str, **more: Any) -> tuple[Job, dict[str, Any]]:
    """The process again."""
    told, _ = migrate("restore", *options, directory, **more)
    return Job(told["new_pid"]), told


def reap() -> None:
    """What was orphaned by the end of a command and has ended, or is about to: overseers when they have let go or with
    the process that they are init for, restorees that came to nothing, agents of commands that were killed. Not before
    the test has waited for all that it has started and ended itself."""
    ours = ("memfd:migrate-r", "migrate", "python", "python3")
    for pid in children(os.getpid()):
        if status_field(pid, "Name")[:1] and status_field(pid, "Name")[0] in ours:
            wait_until(f"the end of {pid}", lambda pid=pid: os.waitpid(pid, os.WNOHANG)[0])
    while children(os.getpid()) and os.waitpid(-1, os.WNOHANG)[0]:
        pass


Keep = Callable[[Job], Job]


@contextmanager
def keeping() -> Iterator[Keep]:
    """What is given to it has ended, and is reaped, at the end of the block."""
    kept: list[Job] = []

    def add(job: Job) -> Job:
        kept.append(job)
        return job

    try:
        yield add
    finally:
        for job in kept:
            job.close()
        reap()


def without_a_trace(directory: Path) -> bool:
    """Whether nothing of a checkpoint is there."""
    return not directory.exists() or not any(directory.iterdir())


def until_longer(path: Path, lines: int = 20) -> None:
    """Until a log has so many lines more than now."""
    before = _lines(path)
    wait_until(f"{path} grows", lambda: _lines(path) >= before + lines, 30)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def whole_lines(path: Path) -> Sequence[str]:
    """But for one at the end that is being written."""
    lines = path.read_text().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]

"""Victims of the tests of the tracee: started, and at the end asked whether they noticed anything."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROUNDS = 100

_SYS_RT_SIGQUEUEINFO = 129
_SI_QUEUE = -1
_libc = ctypes.CDLL(None, use_errno=True)


class Victim:
    """A process that said "ready"."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def ready(self) -> None:
        """Wait until it has set itself up."""
        assert self.out.readline() == "ready\n"

    @property
    def out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def input(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def tids(self) -> list[int]:
        return [int(path.name) for path in Path(f"/proc/{self.pid}/task").iterdir()]

    def maps(self) -> str:
        return Path(f"/proc/{self.pid}/maps").read_text()

    def states(self) -> set[str]:
        """The state letters of its threads (proc_pid_stat(5))."""
        stats = [path.joinpath("stat").read_text() for path in Path(f"/proc/{self.pid}/task").iterdir()]
        return {text.rpartition(")")[2].split()[0] for text in stats}

    def is_stopped(self) -> bool:
        """Whether all of it goes back to its group-stop, which it takes a moment to do."""
        end = time.monotonic() + 2
        while self.states() != {"T"}:
            if time.monotonic() > end:
                return False
        return True

    def queue(self, number: int, value: int) -> bool:
        """sigqueue(3) without its choice of si_code and the like; False: the queue is full."""
        parts = (number, 0, _SI_QUEUE, 0, os.getpid(), os.getuid(), value, 0)
        info = b"".join(part.to_bytes(4, "little", signed=True) for part in parts).ljust(128, b"\0")
        return bool(_libc.syscall(_SYS_RT_SIGQUEUEINFO, self.pid, number, info) == 0)

    def status(self, field: str) -> str:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return line.partition(":")[2].strip()
        raise KeyError(field)

    def finish(self, seconds: float = 20) -> str:
        """End its input: what it printed. AssertionError with its own words when it noticed something."""
        out, errors = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, f"exit status {self.process.returncode}: {errors}"
        return out

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue


@contextmanager
def running(*command: str, ready: bool = True) -> Iterator[Victim]:
    """A victim, killed at the end if it still runs."""
    victim = Victim(*command)
    try:
        if ready:
            victim.ready()
        yield victim
    finally:
        victim.close()

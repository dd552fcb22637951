"""A process of a test: one that was started on a test host, or one that was moved there."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = float(os.environ.get("MIGRATE_TEST_PATIENCE", "1"))
"""How many times longer than on a usual machine to wait for anything: an emulated one is ten to twenty times slower."""


def children(pid: int) -> list[int]:
    """The children of every thread of ``pid``; none when it is gone (proc_pid_task_children(5))."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def status_field(pid: int, name: str) -> list[str]:
    """The words of one line of /proc/PID/status; none when the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.split()
    except (FileNotFoundError, ProcessLookupError):
        pass
    return []


def memory(pid: int) -> int:
    """Bytes that a process and its descendants have, what several have counted once (proc_pid_smaps(5): Pss)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) << 10
    return own + sum(memory(child) for child in children(pid))


def wait_until(what: str, condition: object, seconds: float = 10.0) -> None:
    """Poll the callable ``condition`` until it is true; TimeoutError names ``what`` when it never is."""
    assert callable(condition)
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


class Task:
    """A process on a host, by both its numbers: ``outer`` is ours, ``pid`` is the one that the host itself sees.

    It is held by a pidfd, so that a signal never hits a stranger with a used number.
    """

    def __init__(self, outer: int, pid: int, starter: subprocess.Popen[bytes] | None = None) -> None:
        self.outer = outer
        self.pid = pid
        self.starter = starter
        self._pidfd = os.pidfd_open(outer)

    def __repr__(self) -> str:
        return f"<Task {self.pid} (here {self.outer})>"

    @property
    def alive(self) -> bool:
        """Whether it has not ended; a zombie has."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens when it is gone."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait_gone()

    def _hold_descendants(self) -> list[int]:
        """A pidfd of each that lives; all of them are stopped, so that none has another child meanwhile."""
        found, queue = [], [self.outer] if self.alive else []
        while queue:
            pid = queue.pop()
            if pid != self.outer:
                try:
                    found.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    continue  # it has been waited for since
                try:
                    signal.pidfd_send_signal(found[-1], signal.SIGSTOP)
                except ProcessLookupError:
                    os.close(found.pop())
                    continue
            else:
                self.signal(signal.SIGSTOP)
            queue += children(pid)
        return found

    def wait_gone(self, seconds: float = 10.0) -> None:
        """Wait for its end, whoever the parent is; TimeoutError when it lives on."""
        if not select.select([self._pidfd], [], [], seconds * PATIENCE)[0]:
            raise TimeoutError(f"{self!r} still runs after {seconds} s")

    def wait(self, seconds: float = 10.0) -> int:
        """Wait for its end and return its exit status, negative for a signal. Only for a task that the test started."""
        assert self.starter is not None, "only the parent learns the exit status; this task was moved here"
        # nsenter ends as the command ended, by the same signal if it was one (nsenter.c: continue_as_child)
        return self.starter.wait(seconds * PATIENCE)

    def close(self) -> None:
        """Kill it if it still runs, and what descends from it; reap it, and let go of everything."""
        descendants = self._hold_descendants()
        self.kill()
        for pidfd in descendants:
            with suppress(ProcessLookupError):  # it had ended, and has been waited for
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10 * PATIENCE)
            os.close(pidfd)
        if self.starter is not None:
            # nsenter stops itself when its child is stopped (nsenter.c: continue_as_child), and stays so
            self.starter.send_signal(signal.SIGCONT)
            self.starter.wait(10 * PATIENCE)
            for stream in (self.starter.stdin, self.starter.stdout, self.starter.stderr):
                if stream is not None:
                    stream.close()
        os.close(self._pidfd)

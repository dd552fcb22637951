"""A command in the foreground of a terminal of its own."""

from __future__ import annotations

import os
import select
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.hosts import Command, Host


@dataclass
class Terminal:
    """Our end of the terminal."""

    master: int
    command: Command
    shown: str = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def wait_shown(self, words: str, times: int = 1, seconds: float = 20) -> None:
        """Wait until it has shown the words so many times."""
        end = time.monotonic() + seconds
        while self.shown.count(words) < times:
            if time.monotonic() > end or not self._see(end - time.monotonic()):
                raise TimeoutError(f"{words!r} is not shown: {self.shown!r}")

    def end(self) -> int:
        """Wait for the command; its exit code."""
        while self._see(20):
            pass
        return int(self.command.wait(20))

    def close(self) -> None:
        """As when its window is closed, or the connection to the machine that it is on breaks."""
        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, self.master)
        os.close(nothing)

    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)

    def _see(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other end open any more, pty(4)
            return False
        self.shown += data.decode(errors="replace")
        return True


@contextmanager
def terminal(host: Host, argv: Sequence[str], env: Mapping[str, str]) -> Iterator[Terminal]:
    """Starts a command on a host."""
    master, slave = os.openpty()
    command = ["setsid", "--ctty", *argv]
    with host.popen(command, stdin=slave, stdout=slave, stderr=slave, env={"TERM": "xterm", **env}) as process:
        made = Terminal(master, process)
        try:
            yield made
        finally:
            if process.poll() is None:
                process.kill()
            os.close(master)
            os.close(slave)

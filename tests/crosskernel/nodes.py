"""An endpoint of a move between kernels, be it this machine's or a guest: where commands run and victims live."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crosskernel.resident import COMMAND, Resident
from tests.hosts import NULL, SEARCH
from tests.tasks import PATIENCE

LOOK = """\
ps -eo pid=,ppid=,args= | while read -r pid parent words; do
    # neither this shell and what it starts, nor threads of the kernel
    case $$ in "$pid"|"$parent") continue ;; esac
    case 2 in "$pid"|"$parent") continue ;; esac
    echo "process $words"
done
while read -r device place rest; do echo "mount $place of $device"; done </proc/mounts
for path in /tmp/migrate* /dev/shm/*; do
    case $path in /tmp/migrate-test-*) continue ;; esac  # of other test runs, which sweep for themselves
    [ ! -e "$path" ] || echo "file $path"
done
"""


@dataclass
class Node(ABC):
    """One endpoint. Process numbers are those that it sees itself."""

    name: str
    address: str
    directory: Path
    """Its own, below the test bed's, which all endpoints have under the same name."""
    ssh_config: Path
    environment: Mapping[str, str]
    """Of commands, besides `SEARCH` and the like."""
    pids: list[int] = field(default_factory=list, init=False)
    """What `finish` kills."""
    clean: Counter[str] = field(default_factory=Counter, init=False)
    """What `look` saw when nothing had been done there yet."""
    resident: Resident | None = field(default=None, init=False)

    @abstractmethod
    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` there."""

    @property
    def destination(self) -> str:
        """What to type after ``migrate PID`` to get here."""
        return f"root@{self.address}"

    def run(
        self, argv: Sequence[str], *, timeout: float = 120, check: bool = True, input: str = "",
        env: Mapping[str, str] | None = None, cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end; the error carries what it said."""
        command = self.enter([*self._env(env or {}, cwd), *argv])
        done = subprocess.run(command, input=input, text=True, capture_output=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def _env(self, more: Mapping[str, str], cwd: str) -> list[str]:
        common = {"PATH": SEARCH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
        settings = [f"{name}={value}" for name, value in {**common, **self.environment, **more}.items()]
        return ["env", "-i", "-C", cwd, *settings]

    def take_commands(self) -> Resident:
        """From now on `migrate` is at hand there."""
        self.resident = Resident(self.enter([*self._env({}, "/"), *COMMAND]), self.directory)
        return self.resident

    def migrate(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The command, run there to its end."""
        assert self.resident is not None
        return self.resident.run(*argv)

    def spawn(
        self, argv: Sequence[str], *, stdin: Path = NULL, stdout: Path = NULL, stderr: Path = NULL,
        env: Mapping[str, str] | None = None, cwd: str = "/",
    ) -> int:
        """Start a process of its own there, in its own session, as a daemon is started; returns its number. It is nice:
        an emulated machine has one core, and whoever is busy on it would be done before anybody has come to move it."""
        streams = f"<{shlex.quote(str(stdin))} >{shlex.quote(str(stdout))} 2>{shlex.quote(str(stderr))}"
        # in the background the shell's child leads no group, so that setsid(1) need not fork: the number stays
        script = f'setsid nice -n 19 "$@" {streams} & echo $!'
        pid = int(self.run(["sh", "-c", script, "sh", *argv], env=env, cwd=cwd).stdout)
        self.pids.append(pid)
        return pid

    def adopt(self, pid: int) -> None:
        """Take over a process that came here otherwise (it was moved): it is killed at the end of the test."""
        self.pids.append(pid)

    def alive(self, pid: int) -> bool:
        """Whether the process has not ended; a zombie has."""
        return self.run(["sh", "-c", f"grep -q '^State:.[^ZX]' /proc/{pid}/status"], check=False).returncode == 0

    def read(self, path: str) -> str:
        """A file there."""
        return self.run(["cat", path]).stdout

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send it a signal; nothing happens when it is gone."""
        self.run(["kill", f"-{int(number)}", str(pid)], check=False)

    def wait_gone(self, pid: int, seconds: float = 30.0) -> None:
        """Wait for its end; TimeoutError when it lives on."""
        end, pause = time.monotonic() + seconds * PATIENCE, 0.05
        while self.alive(pid):
            if time.monotonic() > end:
                raise TimeoutError(f"{pid} on {self.name} to end: not within {seconds} s")
            time.sleep(pause)
            pause = min(2 * pause, 5.0)  # to be asked takes a guest longer than much of what it is to work on meanwhile

    def look(self) -> Counter[str]:
        """Processes, mounts and files there that a test might leave behind, in words."""
        return Counter(self.run(["sh", "-c", LOOK]).stdout.splitlines())

    def left(self, seconds: float = 60.0) -> list[str]:
        """What is there now and was not when it was `clean`, ends that may still be coming waited for."""
        end = time.monotonic() + seconds
        while True:
            left = self.look() - self.clean
            if not left or time.monotonic() > end:
                return [f"{self.name}: {what}" for what in sorted(left.elements())]
            time.sleep(0.5)

    def finish(self) -> None:
        """End of a test: what it started or adopted is killed."""
        while self.pids:
            pid = self.pids.pop()
            if self.alive(pid):
                self.kill(pid)
                self.wait_gone(pid)

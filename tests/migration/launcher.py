"""Runs the real command many times without waiting for Python to start each time.

`main` is started once inside a test host, with everything imported. Told to, it forks a child that becomes
``migrate …`` with an environment and files for its output: a process of its own that can be signalled and killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrate import faults
from tests.hosts import Host
from tests.tasks import children, wait_until

ROOT = str(Path(__file__).parents[2])
PATIENT = ("--no-converge", "continue")
"""Options for tests of something else: on a busy machine a process changes more than fits a downtime by default."""


def main() -> None:
    """Requests are lines of JSON on standard input: a command to be started, or the number of one to be waited for."""
    import migrate.cli
    import migrate.coordinator
    import migrate.inquiry

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(_become(request, migrate.cli.main))
        print(json.dumps(pid), flush=True)


def _become(request: dict[str, Any], command: Any) -> int:
    os.setsid()
    os.environ.update(request["env"])
    for number, (path, flags) in enumerate([("/dev/null", os.O_RDONLY), (request["out"], 1 | os.O_CREAT),
                                            (request["err"], 1 | os.O_CREAT)]):
        os.dup2(os.open(path, flags, 0o600), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults.arm(os.environ.get(faults.VARIABLE, ""))
    try:
        return int(command(request["argv"]))
    except BaseException as error:
        print(f"escaped: {error!r}", file=sys.stderr, flush=True)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclass
class Result:
    """How a command ended: its exit code, what it said, and the object of --json, if there is one."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.out.splitlines()[-1])) if self.out.strip() else {}


class Run:
    """A command that was started. ``outer`` is our number of its process."""

    def __init__(self, launcher: Launcher, pid: int, directory: Path, name: str) -> None:
        self._launcher, self._pid, self._directory, self._name = launcher, pid, directory, name
        self.outer = launcher.host.host_pid(pid)
        self._begun = time.monotonic()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.outer, number)

    @property
    def ended(self) -> bool:
        return Path(f"/proc/{self.outer}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    @property
    def agents(self) -> list[int]:
        """Our numbers of its local agents."""
        return [pid for pid in children(self.outer) if b"agents.source" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    @property
    def err(self) -> str:
        """What it has said on standard error."""
        return (self._directory / f"{self._name}.err").read_text()

    def wait(self) -> Result:
        """Until it has ended."""
        code = self._launcher.ask(wait=self._pid)
        out, err = ((self._directory / f"{self._name}.{kind}").read_text() for kind in ("out", "err"))
        return Result(code, out, err, time.monotonic() - self._begun)


class Launcher:
    """The test's end."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self._directory = host, directory
        self._count = 0
        program = f"import sys; sys.path.insert(0, {ROOT!r}); from tests.migration.launcher import main; main()"
        self._server = host.popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> int:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(json.loads(self._server.stdout.readline()))

    def start(self, *argv: str, fault: str = "", config: bool = True, **env: str) -> Run:
        """``migrate argv…``, with the fault."""
        self._count += 1
        name = f"run-{self._count}"
        arguments = [*(["-F", str(self.host.ssh_config)] if config else []), *argv]
        out, err = (str(self._directory / f"{name}.{kind}") for kind in ("out", "err"))
        pid = self.ask(argv=arguments, env={faults.VARIABLE: fault, **env}, out=out, err=err)
        return Run(self, pid, self._directory, name)

    def close(self) -> None:
        with self._server:
            assert self._server.stdin
            self._server.stdin.close()
            self._server.wait(10)


@contextmanager
def launcher(host: Host, directory: Path) -> Iterator[Launcher]:
    """A launcher on a host."""
    made = Launcher(host, directory)
    try:
        assert made.ask(argv=["--version"], env={}, out="/dev/null", err="/dev/null") > 0
        yield made
    finally:
        made.close()


class Hold:
    """A point at which a migration is held: ``fault`` for `Launcher.start`."""

    def __init__(self, directory: Path, point: str) -> None:
        self.path = directory / f"hold-{point}"
        self.path.unlink(missing_ok=True)
        self.point = point
        self.fault = f"{point}:hold={self.path}"

    def reached(self, run: Run) -> None:
        """Wait until the migration is there."""
        wait_until(f"{self.point} reached", lambda: self.path.exists() or run.ended, 30)
        assert self.path.exists(), f"{self.point} was not reached: {run.wait()}"

    def release(self) -> None:
        """Let it go on."""
        self.path.unlink()

"""Moves on this machine, without a connection: into a PID namespace of its own, as all numbers are taken here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from agents import journal, settling
from migrate import faults
from migrate.arguments import parse
from migrate.coordinator import Migration
from migrate.destination import Destination
from migrate.links import Relay
from migrate.options import Options
from migrate.progress import Quiet
from migrate.report import Report
from migrate.rescue import Rescue
from migrate.source_agent import source_agent
from migrate.transport import local
from migrate.transport.agent import open_agent
from migrate.transport.ring import Ring
from tests.tasks import children, status_field, wait_until
from tests.victims import Victims

ROOT = Path(__file__).parents[2]


async def _moved(pid: int, options: tuple[str, ...]) -> Report:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from agents import destination; sys.exit(destination.main())"
    )
    display, id = Quiet(), journal.new_id()
    with Ring.create() as ring:
        relay = Relay(display, ring)
        async with (
            source_agent(pid, ring, relay, display, False, id) as source,
            local.start([sys.executable, "-S", "-c", program]) as stream,
            open_agent(stream, "this machine") as agent,
        ):
            relay.destination = agent
            rescue = Rescue(pid, source.agent, source.stream, ring, display)
            asked = parse(["--stdio", "null", "--verify", "--max-downtime", "30s", *options, str(pid), "here"])
            assert isinstance(asked, Options)
            where = Destination(agent, "this machine", pid)
            return await Migration(asked, display, rescue, where, relay, trio.CancelScope(), id).run()


@dataclass
class Tree:
    """A victim with its descendants. ``pid`` is the first, where it is now."""

    directory: Path
    starter: subprocess.Popen[bytes]
    pid: int
    reports: list[Report] = field(default_factory=list)
    overseers: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)  # who was moved from where

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text(errors="replace")

    @property
    def everybody(self) -> list[int]:
        """Our numbers of all that live, parents first."""
        found = [self.pid]
        for pid in found:
            found += children(pid)
        return found

    def move(self, *options: str, fault: str = "") -> Report:
        """Into a PID namespace of its own. Raises what the coordinator does."""
        self.left += self.everybody
        faults.arm(fault)
        try:
            report = trio.run(_moved, self.pid, options)
        finally:
            faults.arm("")
        assert report.new_pid is not None
        self.pid = report.new_pid
        self.overseers.append(int(status_field(self.pid, "PPid")[0]))
        self.reports.append(report)
        return report

    def verdict(self) -> None:
        """Have it look at itself; an AssertionError says what it complained of."""
        (self.directory / "go").touch()
        try:
            wait_until("its end", lambda: not Path(f"/proc/{self.pid}/exe").exists(), 20)
        except TimeoutError:
            raise AssertionError(f"it gave no verdict: {self.out!r} {self.err!r}") from None
        assert not self.err and self.out.endswith("pass\n"), f"{self.out!r} {self.err!r}"


@contextmanager
def tree(victims: Victims, directory: Path, name: str, *arguments: str) -> Iterator[Tree]:
    """Such a victim, ready. All of it is ended in the end."""
    directory.mkdir(exist_ok=True)
    environment = {**os.environ, "VICTIM_GO": str(directory / "go"), "VICTIM_DIR": str(directory)}
    with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
        process = subprocess.Popen(
            [victims(name), *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    made = Tree(directory, process, process.pid)
    try:
        wait_until(f"{name} ready", lambda: "ready\n" in made.out or process.poll() is not None)
        assert process.poll() is None, made.err
        yield made
    finally:
        people = []
        for pid in {*made.everybody, *made.overseers, *made.left}:
            try:
                people.append(settling.person(pid))
            except (FileNotFoundError, ProcessLookupError):
                continue
        settling.end(people)
        process.kill()
        process.wait()
        for pid, _ in people:  # orphans come to the tests
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for pid in children(os.getpid()):  # and those of whom nobody heard while they lived
            if status_field(pid, "State")[:1] == ["Z"]:
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)

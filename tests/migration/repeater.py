"""Many migrations with the same two agents, each with a fault of its own: what a test of hundreds of them needs.

`main` runs inside a test host. It is the coordinator's own code; only the connection and the agents outlive a migration
that has come to nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from agents import journal
from migrate import faults
from migrate.arguments import parse
from migrate.coordinator import Migration
from migrate.engine.program import Linked
from migrate.errors import Failed, MigrateError
from migrate.links import connected
from migrate.options import Options
from migrate.progress import Quiet
from tests.hosts import Host
from tests.migration.launcher import PATIENT

ROOT = str(Path(__file__).parents[2])


async def main(*argv: str) -> None:
    """Answers faults with what became of the migration, line by line."""
    options = parse(argv)
    assert isinstance(options, Options)
    sent: list[str] = []
    spoil = faults.spoil

    def noted(linked: Linked) -> Linked:
        sent.extend(f"{op.name} {op.label}" for op in linked.ops)
        return spoil(linked)

    faults.spoil = noted
    while True:
        async with connected(options, Quiet(), journal.new_id()) as (rescue, destination, relay):
            _answer(code=0)
            while not (rescue.source.lost or destination.agent.lost):
                if not (fault := (await trio.to_thread.run_sync(sys.stdin.readline)).strip()):
                    return
                faults.arm(fault)
                sent.clear()
                relay._off = False  # by the last one's roll-back
                fresh = replace(rescue, touched=False, halted=False, prepared=False, locks={})
                migration = Migration(options, Quiet(), fresh, destination, relay, trio.CancelScope(), journal.new_id())
                begun = time.monotonic()
                code, error = 0, ""
                try:
                    await migration.run()
                except MigrateError as failure:
                    code, error = failure.exit_code, str(failure)
                    with suppress(Failed):
                        await rescue.source.request("inspect", pid=options.pid)  # lets go of its dirty-page tracker
                lost = bool(rescue.source.lost or destination.agent.lost)
                _answer(code=code, error=error, ops=sent, seconds=time.monotonic() - begun, lost=lost)


def _answer(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


@dataclass(frozen=True)
class Attempt:
    """How a migration ended: exit code, sentence, the ops that were sent to be run (system call and label), how long it
    took, and whether it cost an agent."""

    code: int
    error: str
    ops: list[str] = field(repr=False)
    seconds: float
    lost: bool


class Repeater:
    """The test's end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._hear() == {"code": 0}

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        return dict(json.loads(self._process.stdout.readline()))

    def attempt(self, fault: str) -> Attempt:
        """A migration with the fault."""
        assert self._process.stdin
        self._process.stdin.write(f"{fault}\n")
        self._process.stdin.flush()
        attempt = Attempt(**self._hear())
        if attempt.lost:
            assert self._hear() == {"code": 0}  # connected again
        return attempt


@contextmanager
def repeater(source: Host, pid: int, destination: Host) -> Iterator[Repeater]:
    """Connected, and ready for attempts."""
    argv = ["-F", str(source.ssh_config), *PATIENT, str(pid), destination.destination]
    lines = (
        f"import sys; sys.path.insert(0, {ROOT!r})",
        "import trio",
        "from tests.migration.repeater import main",
        f"trio.run(main, *{argv!r})",
    )
    pipe = subprocess.PIPE
    with source.popen([sys.executable, "-c", "\n".join(lines)], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Repeater(process)
            assert process.stdin
            process.stdin.close()
            assert process.wait(20) == 0
        finally:
            process.kill()

"""Moves a task of one test host to the other by the real command, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hosts import Command, Host, Pair
from tests.tasks import PATIENCE, Task

PROGRAM = str(Path(sys.executable).with_name("migrate"))


@dataclass(frozen=True)
class Outcome:
    """What the command said: its exit code, the object of --json, and all that it wrote."""

    code: int
    report: dict[str, Any]
    out: str
    err: str


def start(source: Host, pid: int, dest: str, *options: str, env: Mapping[str, str] | None = None) -> Command:
    """Start ``migrate --json`` on ``source`` and return at once; `finish` waits for it, send_signal interrupts it."""
    command = [PROGRAM, "--json", "-F", str(source.ssh_config), *options, str(pid), dest]
    pipe = subprocess.PIPE
    return source.popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=env)


def finish(command: Command, timeout: float = 60) -> Outcome:
    """Wait for what `start` started. An AssertionError when it did not end with its object on standard output."""
    with command:
        try:
            out, err = command.communicate(timeout=timeout * PATIENCE)
        except BaseException:
            command.kill()
            raise
    lines = out.splitlines()
    try:
        report = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise AssertionError(f"migrate ended with {command.returncode} and no JSON\n{out}{err}") from error
    return Outcome(command.returncode, report, out, err)


def move(
    pair: Pair,
    task: Task,
    *options: str,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    verify: bool = True,
) -> tuple[Task, Outcome]:
    """Move ``task`` from node1 to node2. Returns it as it is there; AssertionError unless it is there and not here.
    ``verify``: have every page compared."""
    wanted = [*options, *(["--verify"] if verify else [])]
    outcome = finish(start(pair.a, task.pid, pair.b.destination, *wanted, env=env), timeout)
    if outcome.code != 0 or not outcome.report["ok"]:
        raise AssertionError(f"not moved, exit {outcome.code}\n{outcome.out}{outcome.err}")
    assert not task.alive, f"{task!r} was moved and still runs on {pair.a.name}"
    return pair.b.adopt(outcome.report["new_pid"]), outcome

"""Moves on one pair of hosts, each with what has become of it."""

from __future__ import annotations

import itertools
import json
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tests.chaos import lane
from tests.chaos.lane import Lane
from tests.chaos.plan import Plan, draw
from tests.chaos.verdict import who
from tests.victims import Victims

_SHIFT = 1000  # seconds by which the clocks of every other lane's second host are ahead
_KEPT = 6000  # characters of what is said of a move that has broken something


@dataclass(frozen=True)
class Report:
    """Of one move. ``kinds``: the disasters that hit; ``error``: what is broken, or nothing."""

    plan: str
    kinds: list[str]
    outcome: str
    seconds: float
    error: str = ""

    def line(self) -> str:
        """For a pipe."""
        return json.dumps(asdict(self))


def moves(number: int, names: Iterator[str]) -> Iterator[Report]:
    """One after the other, on other hosts when something has been broken."""
    while True:
        with lane.made(f"chaos-{os.getpid()}", Victims(), _SHIFT * (number % 2)) as made:
            for name in names:
                report = one(made, draw(name, made.kinds))
                yield report
                if report.error:
                    break
            else:
                made.finish()
                return


def one(made: Lane, plan: Plan) -> Report:
    """A move."""
    begun = time.monotonic()
    try:
        kinds, outcome = made.move(plan)
        return Report(str(plan), kinds, outcome, time.monotonic() - begun)
    except Exception:
        kinds = [blow.kind for blow in plan.blows]
        text = traceback.format_exc()
        return Report(str(plan), kinds, "BROKEN", time.monotonic() - begun, f"{text[-_KEPT:]}\n{_scenery(made)}")


def _scenery(made: Lane) -> str:
    """How things stand on both hosts."""
    lines = []
    for side in (made.here, made.there):
        for pid in side.host.outer_pids():
            lines.append(f"{side.host.name}: {who(pid)}")
        directory = side.node.journals.path / "migrate" / "journal"
        for path in sorted(directory.glob("*")) if directory.is_dir() else ():
            text = path.read_text(errors="replace") if path.is_file() else ""
            records = "\n    ".join(line.replace("x" * 100, "") for line in text.splitlines())
            lines.append(f"{side.host.name}: {path.name}\n    {records}")
    return "\n".join(lines)


def names(seed: str, number: int) -> Iterator[str]:
    """Of plans, without end."""
    return (f"{seed}/{number}/{count}" for count in itertools.count())

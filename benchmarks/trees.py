"""What several processes cost that move together: a shell's session, and so many that sleep."""

from __future__ import annotations

import statistics
import time
from typing import Any

from rich.table import Table

from tests import moves
from tests.hosts import Pair
from tests.tasks import children, wait_until

PHASES = ("stop", "vdso", "collect", "scan", "send", "restore", "commit")
# A session leader with ten children: four that sleep, two that compute, and a pipeline of four
SESSION = """
for i in 1 2 3 4; do sleep 1000 & done
for i in 1 2; do while :; do :; done & done
sleep 1000 | cat | cat | cat &
wait
"""
SLEEPERS = "for i in $(seq {}); do sleep 1000 & done; wait"
_TIMES = 5


def table(pair: Pair) -> Table:
    """Milliseconds of downtime, as a whole, for each process beyond the first, and by its parts."""
    made = Table("tree", "downtime ms", "each further one", *PHASES, "total s", title="trees over SSH")
    alone = 0.0
    for name, script, count in (
        ("1 process", "", 1),
        ("a shell's session, 11", SESSION, 11),
        *((f"{count} processes", SLEEPERS.format(count - 1), count) for count in (10, 50, 200)),
    ):
        seen = [_moved(pair, script, count) for _ in range(_TIMES)]
        times = [float(report["downtime_ms"]) for report in seen]
        middle = statistics.median(times)
        alone = alone or middle
        each = f"{(middle - alone) / (count - 1):.2f}" if count > 1 else ""
        parts = (f"{statistics.median(report['phases_ms'][phase] for report in seen):.1f}" for phase in PHASES)
        total = statistics.median(float(report["total_s"]) for report in seen)
        made.add_row(name, f"{middle:.1f} ({min(times):.1f}-{max(times):.1f})", each, *parts, f"{total:.2f}")
    return made


def _moved(pair: Pair, script: str, count: int) -> dict[str, Any]:
    argv = ["sleep", "1000"] if count == 1 else ["bash", "-c", script]
    try:
        task = pair.a.spawn(argv)
        wait_until("its children", lambda: len(children(task.outer)) == count - 1)
        time.sleep(0.3)
        outcome = moves.finish(moves.start(pair.a, task.pid, pair.b.destination, "--no-converge", "continue"))
        assert outcome.code == 0, outcome.err
        return outcome.report
    finally:
        pair.finish()

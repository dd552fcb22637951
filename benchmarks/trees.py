"""What several processes cost that move together: a shell's session, so many that sleep, and such as share memory by
copy on write."""

from __future__ import annotations

import statistics
import time
from typing import Any

from rich.table import Table

from tests import moves
from tests.hosts import Pair
from tests.tasks import children, memory, wait_until
from tests.victims import Victims

PHASES = ("stop", "vdso", "collect", "scan", "send", "restore", "commit")
# A session leader with ten children: four that sleep, two that compute, and a pipeline of four
SESSION = """
for i in 1 2 3 4; do sleep 1000 & done
for i in 1 2; do while :; do :; done & done
sleep 1000 | cat | cat | cat &
wait
"""
SHARING = ((512, 16), (1024, 199))  # MiB of the parent, and children that have each written to one of them
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


def shared(pair: Pair) -> Table:
    """Memory that they have, before and after (the sum of their Pss), and what is sent of it."""
    made = Table(
        *("parent and children", "memory MiB", "there", "ratio", "sent MiB", "ratio", "downtime ms", "total s"),
        title="memory that is shared by copy on write",
    )
    for mib, count in SHARING:
        directory = pair.directory / f"shared-{count}"
        directory.mkdir()
        env = {"VICTIM_DIR": str(directory), "VICTIM_GO": str(directory / "go")}
        argv = [Victims()("heirs"), str(mib), str(count), "1024", "quiet"]
        try:
            task = pair.a.spawn(argv, env=env, stdout=directory / "out", stderr=directory / "err")
            wait_until("ready", lambda out=directory / "out": "ready" in out.read_text(), 120)
            before = memory(task.outer)
            options = ("--compress", "none", "--no-converge", "continue")
            there, outcome = moves.move(pair, task, *options, timeout=300, verify=False)
            after, sent = memory(there.outer), outcome.report["bytes_sent"]
            row = [f"{mib} MiB, {count}", f"{before >> 20}"]
            row += [f"{after >> 20}", f"{after / before:.3f}", f"{sent >> 20}", f"{sent / before:.3f}"]
            made.add_row(*row, f"{outcome.report['downtime_ms']:.0f}", f"{outcome.report['total_s']:.1f}")
        finally:
            pair.finish()
    return made

"""``make bench``: what we claim about speed, as tables with ratios to something run beside it.

Machines are noisy: every figure is a median, with the least and the most seen, and what matters is the ratio. Name
tables to run only these: ``python -m benchmarks downtime throughput``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from benchmarks import disk as checkpoints
from benchmarks import trees as families
from benchmarks import vdso
from benchmarks.measure import Load, Move, apart, copying, move, stream, victim
from tests.hosts import Pair, two_hosts

console = Console(width=120)
PHASES = ("stop", "vdso", "collect", "scan", "send", "restore", "commit")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``9.1 (8.2-12.0)``: median, least, most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def repeated(pair: Pair, load: Load, times: int, *options: str) -> list[Move]:
    """The same move several times, each of a fresh process."""
    found = []
    for _ in range(times):
        with victim(pair, load) as subject:
            found.append(move(pair, subject, *options))
    return found


def downtime(pair: Pair) -> None:
    """How long it is stopped, and where the time goes."""
    table = Table("process", "downtime ms", "ratio to small", *PHASES, title="downtime over SSH between two hosts")
    small = 0.0
    for name, load, times in (
        ("small, 1 thread", Load(), 9),
        ("1 GiB idle", Load(mib=1024), 5),
        ("1 GiB, 100 MB/s dirtied", Load(mib=1024, dirty=95), 5),
        ("64 threads", Load(threads=64), 5),
    ):
        # A machine that is too slow for it shows that in the figure.
        seen = repeated(pair, load, times, "--no-converge", "continue")
        times_ms = [one.downtime for one in seen]
        small = small or statistics.median(times_ms)
        phases = (f"{statistics.median(one.report['phases_ms'][phase] for one in seen):.2f}" for phase in PHASES)
        table.add_row(name, spread(times_ms), f"{statistics.median(times_ms) / small:.2f}", *phases)
    console.print(table)


def throughput(pair: Pair) -> None:
    """Incompressible pages, end to end, against the same SSH connection into cat."""
    table = Table(
        "run", "into cat MB/s", "pages MB/s", "ratio", "CPU seconds", title="throughput of 1 GiB of random pages"
    )
    for number in range(3):
        plain = stream(pair, 2)
        with victim(pair, Load(mib=1024)) as subject:
            moved = move(pair, subject, "--compress", "none")
        cpu = ", ".join(f"{role} {seconds:.2f}" for role, seconds in sorted(moved.cpu.items(), key=lambda i: -i[1]))
        table.add_row(str(number + 1), f"{plain:.0f}", f"{moved.rate:.0f}", f"{moved.rate / plain:.2f}", cpu)
    console.print(table)
    console.print("The process with the most CPU seconds is the bottleneck; both hosts share this machine's cores.")


def slowdown(pair: Pair) -> None:
    """A loop over 1 GiB on one core, while its pages are copied by all that is on the other, against the same loop
    beside a plain SSH stream."""
    table = Table("run", "alone", "beside a stream", "during pre-copy", "ratio", title="passes over 1 GiB per second")
    for number in range(3):
        with victim(pair, Load(mib=1024, dirty=-1)) as subject, apart(subject):
            alone = subject.rate(3)
            with ThreadPoolExecutor(1) as pool:
                streaming = pool.submit(stream, pair, 5)
                time.sleep(1)  # until it is past its start
                beside = subject.rate(3)
                streaming.result()
            with copying(pair, subject):
                during = subject.rate(6)
        table.add_row(str(number + 1), *(f"{rate:.2f}" for rate in (alone, beside, during, during / beside)))
    console.print(table)


def growth(pair: Pair) -> None:
    """Cost as the work grows."""
    table = Table("process", "downtime ms", "total s", "memory MiB: coordinator, source, destination", title="growth")
    loads = [(f"{mib} MiB", Load(mib=mib)) for mib in (64, 256, 1024, 4096)]
    loads += [(f"{count} VMAs", Load(vmas=count)) for count in (10, 100, 1000, 10000)]
    loads += [(f"{count} threads", Load(threads=count)) for count in (1, 10, 100, 1000)]
    for name, load in loads:
        seen = repeated(pair, load, 3)
        roles = ("coordinator", "source agent", "destination agent")
        peaks = ", ".join(f"{max(one.memory.get(role, 0) for one in seen):.0f}" for role in roles)
        total = statistics.median(float(one.report["total_s"]) for one in seen)
        table.add_row(name, spread([one.downtime for one in seen]), f"{total:.2f}", peaks)
    console.print(table)


def proxies(pair: Pair) -> None:
    """The vDSO of another kernel."""
    console.print(vdso.calls())
    console.print(vdso.steps(pair))


def disk(pair: Pair) -> None:
    """Checkpoints, on this machine alone."""
    console.print(checkpoints.tables())


def trees(pair: Pair) -> None:
    """Several processes that move together."""
    console.print(families.table(pair))


def shared(pair: Pair) -> None:
    """Memory that several have by copy on write."""
    console.print(families.shared(pair))


TABLES = {
    "downtime": downtime, "throughput": throughput, "slowdown": slowdown, "growth": growth, "trees": trees,
    "shared": shared, "vdso": proxies, "disk": disk,
}  # fmt: skip


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in TABLES]:
        print(f"no such table: {', '.join(unknown)}; there are {', '.join(TABLES)}", file=sys.stderr)
        return 2
    with two_hosts() as pair:
        for name in names or TABLES:
            TABLES[name](pair)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

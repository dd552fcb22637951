"""What a proxied vDSO costs: each call, and in the downtime."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from benchmarks.measure import Load, victim
from migrate.engine import vdso
from migrate.engine.outside import native_vdso
from migrate.engine.vdso import VDSO, decide
from tests import moves
from tests.hosts import Pair
from tests.kernel.foreign import NEAR, carry_out, plan
from tests.unit import vdsos
from tests.victims import Victims

_REPEATS = 9
_TIMES = 5


def calls() -> Table:
    """clock_gettime(CLOCK_MONOTONIC) at the address of another kernel's, against the same function of this kernel's
    vDSO called directly, by turns in one process."""
    table = Table("vDSO of", "direct ns", "proxied ns", "difference ns", "ratio", "by system call ns", title="a call")
    for kernel in vdsos.KERNELS:
        direct, proxied = _measure(kernel, native_vdso())
        _, system_call = _measure(kernel, VDSO(()))
        one, other, third = (statistics.median(each) for each in (direct, proxied, system_call))
        # The best of many rounds each; the median of those.
        table.add_row(kernel, *(f"{each:.2f}" for each in (one, other, other - one, other / one)), f"{third:.0f}")
    return table


def _measure(kernel: str, there: VDSO) -> tuple[list[float], list[float]]:
    verdict = decide(vdsos.vdso(kernel), there, "it", differ=True)
    made = vdso.build(verdict, NEAR)
    entry = next(entry for entry in verdict.entries if "clock_gettime" in entry.names)
    area, rt = verdict.task.area, VDSO(made.rt).area
    assert area is not None
    with tempfile.TemporaryDirectory() as scratch:
        lines = plan(Path(scratch), made)
        for _ in range(_REPEATS):
            if rt is not None and entry.there is not None:
                lines.append(f"time direct {rt.start + entry.there:x}")
            lines.append(f"time proxied {area.start + entry.offset:x}")
        said = carry_out(Victims(), Path(scratch), lines)
    found: dict[str, list[float]] = {"direct": [], "proxied": []}
    for label, _, number in (line.partition(" ") for line in said.splitlines()):
        if label in found:
            found[label].append(float(number))
    return found["direct"], found["proxied"]


def steps(pair: Pair) -> Table:
    """Milliseconds of the downtime in which threads leave the vDSO; all else of it is done before the freeze."""
    table = Table("process", "same kernel", "another kernel", "no vDSO there", title="vDSO step in ms: median (most)")
    kinds: tuple[Mapping[str, str] | None, ...] = (
        None, {"MIGRATE_FAULT": "vdso:differs"}, {"MIGRATE_FAULT": "vdso:missing"}
    )  # fmt: skip
    for name, load in (("1 thread", Load()), ("1 thread, writing 10 MB/s", Load(mib=64, dirty=10)),
                       ("64 threads", Load(threads=64))):  # fmt: skip
        row = []
        for env in kinds:
            seen = []
            for _ in range(_TIMES):
                with victim(pair, load) as subject:
                    started = moves.start(pair.a, subject.task.pid, pair.b.destination, env=env)
                    outcome = moves.finish(started)
                assert outcome.code == 0, outcome.err
                seen.append(float(outcome.report["phases_ms"]["vdso"]))
            row.append(f"{statistics.median(seen):.2f} ({max(seen):.2f})")
        table.add_row(name, *row)
    return table

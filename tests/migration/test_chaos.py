"""Some of the moves of `make chaos`, always the same ones: at random moments somebody dies, or something is cut off or
runs out. Exactly one copy of the process is there afterwards, and it has noticed nothing."""

from __future__ import annotations

import pytest

from tests.chaos.table import Tally
from tests.chaos.worker import Report, moves

MOVES = 16


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", ["a/0", "b/1"])
def test_chaos(seed: str) -> None:
    number = int(seed[-1])
    reports: list[Report] = []
    tally = Tally()
    for report in moves(number, (f"{seed}/{count}" for count in range(MOVES))):
        tally.add(report.kinds, report.outcome)
        reports.append(report)
    print(*tally.lines(), sep="\n")
    assert not tally.broken, "\n\n".join(f"{report.plan}\n{report.error}" for report in reports if report.error)
    assert tally.total == MOVES

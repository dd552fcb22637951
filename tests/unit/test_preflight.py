"""What of the destination stands in the way: its clocks."""

from __future__ import annotations

import platform
from types import SimpleNamespace
from typing import cast

import pytest

from migrate.destination import Facts, Inside
from migrate.engine.clocks import Clocks
from migrate.engine.kernel.timens import Offsets
from migrate.engine.preview import Preview
from migrate.preflight import clock_problems, host_problems


def given(offsets: Offsets | None, there: Clocks) -> tuple[Preview, Facts]:
    """Two hosts that differ in nothing else."""
    hello = {"machine": platform.machine(), "page_size": 4096, "uid": 0}
    task = SimpleNamespace(effective=(1 << 40) - 1)
    here = Clocks("ours", 1000, 2000)
    facts = SimpleNamespace(hello=hello, task=task, offsets=offsets, here=here, there=there, memory_available=1 << 40)
    return cast(Preview, SimpleNamespace(clock_offsets=(0, 0), resident=0)), cast(Facts, facts)


OTHER_BOOT, SAME_BOOT = Clocks("theirs", 10, 20), Clocks("ours", 1000, 2000)


@pytest.mark.parametrize(
    ("offsets", "there", "no_clock", "found"),
    [
        (None, OTHER_BOOT, False, ["destination kernel"]),
        (None, OTHER_BOOT, True, []),
        (None, SAME_BOOT, False, []),
        (Offsets(), OTHER_BOOT, False, []),
    ],
)
def test_clocks_that_cannot_go_on(offsets: Offsets | None, there: Clocks, no_clock: bool, found: list[str]) -> None:
    problems = host_problems(*given(offsets, there), no_clock)
    assert [problem.where for problem in problems] == found
    assert all("--no-clock" in problem.advice for problem in problems)


@pytest.mark.parametrize(
    ("reason", "no_clock", "count"), [("unshare: No space left", False, 1), ("x: y", True, 0), ("", False, 0)]
)
def test_a_time_namespace_that_is_not_given(reason: str, no_clock: bool, count: int) -> None:
    problems = clock_problems(cast(Inside, SimpleNamespace(no_clocks=reason)), no_clock)
    assert len(problems) == count
    assert all(reason in problem.what and "--no-clock" in problem.advice for problem in problems)

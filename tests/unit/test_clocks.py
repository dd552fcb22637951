"""How clocks are compared, and what they may lose meanwhile."""

from __future__ import annotations

import pytest

from migrate.engine.clocks import Clocks, behind, wanted_offsets
from migrate.engine.kernel.timens import Offsets

TASK = Offsets(10, 20)


def test_of_one_boot_nothing_is_reckoned() -> None:
    assert wanted_offsets(TASK, Clocks("x", 5, 5), Clocks("x", 1, 1)) == TASK


def test_of_two_machines_the_difference() -> None:
    assert wanted_offsets(TASK, Clocks("x", 1000, 3000), Clocks("y", 400, 5000)) == Offsets(610, -1980)


@pytest.mark.parametrize(
    ("monotonic", "boottime", "lost"),
    [
        (2400, 7000, 0),  # as fast as ours
        (2390, 7000, 10),
        (2400, 6970, 30),
        (2390, 6970, 30),
        (2500, 7100, 0),  # gained: that is no going back
    ],
)
def test_what_a_slower_clock_loses(monotonic: int, boottime: int, lost: int) -> None:
    given = wanted_offsets(TASK, Clocks("x", 1000, 3000), Clocks("y", 400, 5000))
    assert behind(given, TASK, Clocks("x", 3000, 5000), Clocks("y", monotonic, boottime)) == lost

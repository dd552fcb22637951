"""CLOCK_MONOTONIC and CLOCK_BOOTTIME go on, on a host whose own are far from ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import hosts, moves
from tests.tasks import wait_until

BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.mark.parametrize("shift", [5000, 0, -100])
@pytest.mark.parametrize("other_boot", [False, True])
def test_clocks_go_on(shift: int, other_boot: bool, victims: Callable[..., str], tmp_path: Path) -> None:
    with hosts.two_hosts(shift=shift) as pair:
        if other_boot:  # then the difference is measured, not known
            (tmp_path / "boot_id").write_text("00000000-0000-4000-8000-000000000000\n")
            pair.b.run(["mount", "--bind", str(tmp_path / "boot_id"), BOOT_ID])
        out = tmp_path / "out"
        task = pair.a.spawn([victims("clockwise")], stdout=out)
        wait_until("it runs", lambda: out.read_text().count("\n") > 20)
        moved, outcome = moves.move(pair, task)
        count = out.read_text().count("\n")
        wait_until("it runs on", lambda: out.read_text().count("\n") > count + 50)
        moved.kill()
        pair.finish()
        last = out.read_text().splitlines()[-2].split()
        longest = int(last[1])
        assert last[0].isdecimal(), f"a clock {last}"
        assert longest < outcome.report["downtime_ms"] + 2000, "a clock jumped"


def test_a_moved_clock_moves_back(victims: Callable[..., str], tmp_path: Path) -> None:
    """What was moved to a time namespace is moved on by the clocks that it has, not by those of the machine."""
    with hosts.two_hosts(shift=5000) as pair:
        out = tmp_path / "out"
        task = pair.a.spawn([victims("clockwise")], stdout=out)
        wait_until("it runs", lambda: out.read_text().count("\n") > 20)
        there, _ = moves.move(pair, task)
        time.sleep(0.1)
        back = hosts.Pair(pair.b, pair.a, pair.directory)
        home, outcome = moves.move(back, there)
        count = out.read_text().count("\n")
        wait_until("it runs on", lambda: out.read_text().count("\n") > count + 50)
        home.kill()
        pair.finish()
        assert int(out.read_text().splitlines()[-2].split()[1]) < outcome.report["downtime_ms"] + 2000

"""Memory that the processes of a tree share by copy on write is sent once, and shared after the move."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernel.onward import tree
from tests.victims import Victims

MIB = 1 << 20


def proportional(pids: Sequence[int]) -> int:
    """Bytes that they have in memory, what several have counted once."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.findall(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)[0]) for text in texts) << 10


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_fork_shared_stays_shared(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "heirs", "heirs", "24", "8", "256", "quiet") as family:
        before = proportional(family.everybody)
        report = family.move("--compress", "none")
        after = proportional(family.everybody)
        assert abs(after - before) < 0.02 * before
        assert report.bytes_sent < 1.05 * before
        family.verdict()


@pytest.mark.parametrize("tracker", ["auto", "digest"])
def test_what_is_written_meanwhile_is_right(victims: Victims, tmp_path: Path, tracker: str) -> None:
    """On both sides of a fork."""
    with tree(victims, tmp_path / "heirs", "heirs") as family:
        family.move("--tracker", tracker)
        family.verdict()


def test_what_was_moved_once_is_still_shared(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "heirs", "heirs") as family:
        family.move()
        before = proportional(family.everybody)
        family.move()
        assert proportional(family.everybody) < 1.05 * before
        family.verdict()


def test_without_frame_numbers_contents_are_compared(
    victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATE_FAULT", "frames:missing")
    with tree(victims, tmp_path / "heirs", "heirs", "16", "4", "256", "quiet") as family:
        before = proportional(family.everybody)
        family.move("--compress", "none")
        assert proportional(family.everybody) < 1.02 * before
        family.verdict()

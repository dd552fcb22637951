"""A process moves with all its descendants, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.onward import tree
from tests.victims import Victims


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("name", ["family", "shares"])
def test_they_notice_nothing(victims: Victims, tmp_path: Path, name: str) -> None:
    with tree(victims, tmp_path / name, name) as family:
        before = len(family.everybody)
        family.move()
        assert len(family.everybody) == before
        family.verdict()

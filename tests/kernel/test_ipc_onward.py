"""What has been moved into an IPC namespace of its own moves on from there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.onward import tree
from tests.victims import Victims


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("victim", ["segments", "semaphores", "undoers", "mqueues", "posixmemory"])
def test_twice(victims: Victims, tmp_path: Path, victim: str) -> None:
    with tree(victims, tmp_path / victim, victim) as family:
        spaces = [os.readlink(f"/proc/{family.pid}/ns/ipc")]
        for _ in range(2):
            family.move()
            spaces.append(os.readlink(f"/proc/{family.pid}/ns/ipc"))
        assert len(set(spaces)) == (1 if victim == "posixmemory" else 3), spaces
        family.verdict()

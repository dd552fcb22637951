"""Shared memory with names (shm_open(3)) moves with those who share it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.errors import Failed
from tests.kernel.onward import tree
from tests.migration.scene import POINTS
from tests.victims import Victims

PLACE = Path("/dev/shm")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """By who fails, too, and nothing beside the names."""
    before = {path.name for path in PLACE.iterdir()}
    yield
    left = [path for path in PLACE.iterdir() if path.name not in before and "victim-" in path.name]
    for path in left:
        path.unlink()
    assert not left


def test_it_moves(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "named", "named") as family:
        family.move()
        assert not list(PLACE.glob(f".migrate-*/victim-{family.starter.pid}-*"))
        family.verdict()


@pytest.mark.parametrize("point", POINTS[1:])
def test_a_move_that_fails_leaves_it(victims: Victims, tmp_path: Path, point: str) -> None:
    """The names lead to the memory here, and nothing has been left beside them."""
    with tree(victims, tmp_path / "named", "named") as family:
        with pytest.raises(Failed):
            family.move(fault=f"{point}:fail")
        assert not list(PLACE.glob(f".migrate-*/victim-{family.starter.pid}-*"))
        family.verdict()

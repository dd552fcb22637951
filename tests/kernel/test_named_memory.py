"""Shared memory with names (shm_open(3)) moves with those who share it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.engine import leftover
from migrate.engine.kinds import named, node
from migrate.engine.program import Program
from migrate.errors import Failed
from migrate.pie import local
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


@pytest.mark.parametrize("replaced", [True, False])
def test_the_commit_replaces_only_its_own(replaced: bool) -> None:
    """Where somebody else has come to have the name since it was looked at, that stays."""
    path = PLACE / "victim-name"
    path.write_text("somebody's")
    try:
        made = node.Node(str(path), 0o640, 0, 0, node.token(1, 2))
        program = Program("a name")
        program.syscall("close", named.create(program, made, 5), label="close")
        node.place(program, made.name, made, replaced)
        assert local.run(program.link()).failed is None
        assert path.read_text() == ("\0" * 5 if replaced else "somebody's")
        assert not Path(made.stage).exists()
    finally:
        path.unlink()


def test_what_is_left_of_one_that_has_moved() -> None:
    """Its name, unless somebody uses it, or it leads to another one."""
    path = PLACE / "victim-name"
    path.write_text("moved")
    there = path.stat()
    try:
        with path.open():
            leftover.remove({str(path): (there.st_dev, there.st_ino)})
            assert path.exists()
        leftover.remove({str(path): (there.st_dev, there.st_ino + 1)})
        assert path.exists()
        leftover.remove({str(path): (there.st_dev, there.st_ino)})
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)

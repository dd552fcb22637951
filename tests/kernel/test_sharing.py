"""What processes of a tree share because of clone(2), they share after a move."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate.errors import Failed
from tests.kernel.onward import tree
from tests.kernel.test_trees import alone, seen
from tests.migration.scene import POINTS, left_in, states
from tests.tasks import status_field, wait_until
from tests.victims import Victims

__all__ = ["alone"]  # a fixture

COMBINATIONS = ["f", "d", "i", "u", "fd", "di", "fu", "fdiu"]


@pytest.mark.parametrize("how", COMBINATIONS)
def test_they_notice_nothing(victims: Victims, tmp_path: Path, how: str) -> None:
    with tree(victims, tmp_path / "commons", "commons", how) as family:
        family.move()
        family.verdict()


def test_there_and_on(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "commons", "commons", "fdiu") as family:
        family.move()
        family.move()
        family.verdict()


@pytest.mark.parametrize("point", POINTS[1:])
def test_a_move_that_fails_leaves_all_of_them_as_they_were(victims: Victims, tmp_path: Path, point: str) -> None:
    with tree(victims, tmp_path / "commons", "commons", "fdiu") as family:
        before = [(pid, seen(pid)) for pid in family.everybody]
        with pytest.raises(Failed):
            family.move(fault=f"{point}:fail")
        for pid, was in before:
            wait_until("let go", lambda pid=pid: status_field(pid, "TracerPid") == ["0"])
            assert not states(pid) & {"T", "t"} and not left_in(pid)
            assert seen(pid) == was
        family.verdict()

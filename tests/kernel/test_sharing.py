"""What processes of a tree share because of clone(2), they share after a move."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate.errors import Failed, Refused
from tests.kernel.checkpoints import migrate, reap
from tests.kernel.onward import tree
from tests.kernel.test_checkpoint_trees import ended, follow
from tests.kernel.test_trees import alone, seen
from tests.migration.scene import POINTS, left_in, states
from tests.tasks import children, status_field, wait_until
from tests.victims import Victims

__all__ = ["alone"]  # a fixture

COMBINATIONS = ["f", "d", "i", "u", "fd", "di", "fu", "fdiu"]


@pytest.mark.parametrize("how", COMBINATIONS)
def test_they_notice_nothing(victims: Victims, tmp_path: Path, how: str) -> None:
    with tree(victims, tmp_path / "commons", "commons", how) as family:
        family.move()
        family.verdict()


VICTIMS = [("commons", "fdiu"), ("lodgers", "sfdt")]


@pytest.mark.parametrize(("name", "how"), VICTIMS)
def test_there_and_on(victims: Victims, tmp_path: Path, name: str, how: str) -> None:
    with tree(victims, tmp_path / name, name, how) as family:
        family.move()
        family.move()
        family.verdict()


@pytest.mark.parametrize(("name", "how"), VICTIMS)
@pytest.mark.parametrize("point", POINTS[1:])
def test_a_move_that_fails_leaves_all_of_them_as_they_were(
    victims: Victims, tmp_path: Path, name: str, how: str, point: str
) -> None:
    with tree(victims, tmp_path / name, name, how) as family:
        before = [(pid, seen(pid)) for pid in family.everybody]
        with pytest.raises(Failed):
            family.move(fault=f"{point}:fail")
        for pid, was in before:
            wait_until("let go", lambda pid=pid: status_field(pid, "TracerPid") == ["0"])
            assert not states(pid) & {"T", "t"} and not left_in(pid)
            assert seen(pid) == was
        family.verdict()


@pytest.mark.parametrize(("name", "how"), VICTIMS)
@pytest.mark.parametrize("point", ["source-stopped", "source-collected", "source-halted"])
def test_the_source_agent_is_killed(
    victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str, point: str
) -> None:
    """And all of them are cured."""
    with tree(victims, tmp_path / name, name, how) as family:
        before = [(pid, seen(pid)) for pid in family.everybody]
        monkeypatch.setenv("MIGRATE_FAULT", f"{point}:kill")
        with pytest.raises(Failed):
            family.move()
        for pid, was in before:
            wait_until("let go", lambda pid=pid: not states(pid) & {"T", "t"})
            assert status_field(pid, "TracerPid") == ["0"] and not left_in(pid)
            assert seen(pid) == was
        family.verdict()


@pytest.mark.parametrize(("name", "how"), VICTIMS)
def test_to_disk_and_back(victims: Victims, tmp_path: Path, name: str, how: str) -> None:
    """Their memory is in the checkpoint once."""
    directory = tmp_path / "checkpoint"
    with tree(victims, tmp_path / name, name, how) as family:
        told, _ = migrate("dump", str(family.pid), directory)
        ended(family)
        again, _ = migrate("restore", directory)
        assert again["processes"] == told["processes"] and again["pages"] == told["pages"]
        follow(family, again["new_pid"])
        family.verdict()
    reap()


@pytest.mark.parametrize("how", ["", "s", "f", "d", "sfd", "t", "sfdt"])
def test_one_memory(victims: Victims, tmp_path: Path, how: str) -> None:
    with tree(victims, tmp_path / "lodgers", "lodgers", how) as family:
        family.move()
        family.verdict()


def test_they_come_and_go(victims: Victims, tmp_path: Path) -> None:
    """And take what they shared with them, or not."""
    with tree(victims, tmp_path / "guests", "guests") as family:
        family.move("--no-converge", "continue")
        family.verdict()


@pytest.mark.parametrize("tracker", ["digest", "pagemap-scan"])
def test_one_memory_with_either_tracker(victims: Victims, tmp_path: Path, tracker: str) -> None:
    with tree(victims, tmp_path / "lodgers", "lodgers", "s") as family:
        family.move("--tracker", tracker)
        family.verdict()


def test_what_is_shared_with_one_that_stays_behind(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "commons", "commons", "fd") as family:
        parent, (one, other, child) = family.pid, children(family.pid)
        table, directory = "descriptor table (CLONE_FILES)", "current directory (CLONE_FS)"
        for pid, with_whom, what in ((child, parent, table), (one, other, directory)):
            family.pid = pid
            with pytest.raises(Refused) as refusal:
                family.move()
            assert f"it shares its {what} with process {with_whom}, which stays behind" in str(refusal.value)
        family.pid = parent
        family.verdict()

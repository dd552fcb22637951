"""Trees that have both ends of pseudo-terminals, on this machine: where their numbers are taken, of course."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate.errors import Failed
from tests.kernel.onward import tree
from tests.kernel.test_trees import alone, seen
from tests.migration.scene import left_in, states
from tests.tasks import status_field, wait_until
from tests.victims import Victims

__all__ = ["alone"]


def terminals(pid: int) -> list[tuple[str, str]]:
    """Names of what it has open; one that is hung up has any."""
    return [(number, link) for number, link in seen(pid)[1] if link.startswith("/dev") and "(deleted)" not in link]


def test_they_notice_nothing(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "terminals", "terminals") as family:
        before = [terminals(pid) for pid in family.everybody]
        family.move()
        assert [terminals(pid) for pid in family.everybody] == before
        family.verdict()


def test_there_and_on(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "terminals", "terminals") as family:
        family.move()
        family.move()
        family.verdict()


def test_sessions_come_and_go(victims: Victims, tmp_path: Path) -> None:
    """With their terminals, of which the numbers are used again."""
    with tree(victims, tmp_path / "sessions", "sessions") as family:
        family.move("--max-rounds", "3", "--no-converge", "continue")
        family.verdict()


@pytest.mark.parametrize("point", ["source-stopped", "source-collected", "source-halted"])
def test_the_source_agent_is_killed(
    victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with tree(victims, tmp_path / "terminals", "terminals") as family:
        before = family.everybody
        monkeypatch.setenv("MIGRATE_FAULT", f"{point}:kill")
        with pytest.raises(Failed):
            family.move()
        for pid in before:
            wait_until("let go", lambda pid=pid: not states(pid) & {"T", "t"})
        family.verdict()


@pytest.mark.parametrize("point", ["rehearsed", "frozen", "restored", "halted"])
def test_a_move_that_fails_leaves_all_of_it_as_it_was(victims: Victims, tmp_path: Path, point: str) -> None:
    with tree(victims, tmp_path / "terminals", "terminals") as family:
        before = [(pid, seen(pid)) for pid in family.everybody]
        with pytest.raises(Failed):
            family.move(fault=f"{point}:fail")
        for pid, was in before:
            wait_until("let go", lambda pid=pid: status_field(pid, "TracerPid") == ["0"])
            assert not states(pid) & {"T", "t"} and not left_in(pid)
            assert seen(pid) == was
        family.verdict()

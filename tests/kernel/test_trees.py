"""A process moves with all its descendants, on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from migrate.errors import Failed, Refused
from tests.kernel.onward import tree
from tests.migration.scene import POINTS, left_in, states
from tests.tasks import children, status_field, wait_until
from tests.victims import Victims


def seen(pid: int) -> tuple[str, list[tuple[str, str]]]:
    """Some of what shows of it."""
    links = []
    for number in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        links.append((number, os.readlink(f"/proc/{pid}/fd/{number}")))
    return Path(f"/proc/{pid}/maps").read_text(), links


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("name", ["family", "shares", "kinfolk", "adopted"])
def test_they_notice_nothing(victims: Victims, tmp_path: Path, name: str) -> None:
    with tree(victims, tmp_path / name, name) as family:
        before = len(family.everybody)
        family.move()
        assert len(family.everybody) == before
        family.verdict()


@pytest.mark.parametrize("point", POINTS[1:])
def test_a_move_that_fails_leaves_all_of_them_as_they_were(victims: Victims, tmp_path: Path, point: str) -> None:
    with tree(victims, tmp_path / "shares", "shares") as family:
        before = [(pid, seen(pid)) for pid in family.everybody]
        with pytest.raises(Failed):
            family.move(fault=f"{point}:fail")
        for pid, was in before:
            wait_until("let go", lambda pid=pid: status_field(pid, "TracerPid") == ["0"])
            assert not states(pid) & {"T", "t"} and not left_in(pid)
            assert seen(pid) == was
        family.verdict()


def test_one_of_them_is_stopped(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "family", "family") as family:
        child = children(family.pid)[1]
        os.kill(child, signal.SIGSTOP)
        wait_until("stopped", lambda: states(child) == {"T"})
        family.move()
        there = children(family.pid)[1]
        wait_until("stopped there", lambda: states(there) == {"T"})
        assert not any(states(pid) & {"T", "t"} for pid in family.everybody if pid != there)
        os.kill(there, signal.SIGCONT)
        family.verdict()


@pytest.mark.parametrize("point", ["source-stopped", "source-collected", "source-halted"])
def test_the_source_agent_is_killed(
    victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """And all of them are cured."""
    with tree(victims, tmp_path / "shares", "shares") as family:
        before = [(pid, seen(pid)) for pid in family.everybody]
        monkeypatch.setenv("MIGRATE_FAULT", f"{point}:kill")
        with pytest.raises(Failed):
            family.move()
        for pid, was in before:
            wait_until("let go", lambda pid=pid: not states(pid) & {"T", "t"})
            assert status_field(pid, "TracerPid") == ["0"] and not left_in(pid)
            assert seen(pid) == was
        family.verdict()


def test_there_and_on(victims: Victims, tmp_path: Path) -> None:
    """From one PID namespace to another: our numbers are not theirs."""
    with tree(victims, tmp_path / "kinfolk", "kinfolk") as family:
        family.move()
        family.move()
        family.verdict()


def test_what_cannot_be_moved_together(victims: Victims, tmp_path: Path) -> None:
    """Is named, and nothing is touched."""
    with tree(victims, tmp_path / "inseparable", "inseparable") as family:
        with pytest.raises(Refused) as refusal:
            family.move()
        said = str(refusal.value)
        assert "it shares its memory (CLONE_VM) with process" in said and "no order of making them again" in said
        assert "another uts namespace" in said
        family.verdict()


def test_one_that_waits_in_vfork(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "vforks", "vforks", "600000") as family:
        wait_until("in vfork", lambda: states(family.pid) == {"D"})
        (child,) = children(family.pid)
        with pytest.raises(Refused, match="it waits in vfork"):
            family.move()
        for pid in (family.pid, child):
            wait_until("let go", lambda pid=pid: status_field(pid, "TracerPid") == ["0"])
            assert not left_in(pid)
        assert states(family.pid) == {"D"} and not states(child) & {"T", "t"}
        os.kill(child, signal.SIGKILL)
        wait_until("its end", lambda: status_field(family.pid, "State")[0] == "Z")


def test_the_source_agent_is_killed_with_one_of_them_stopped(
    victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood still before stands still after it."""
    with tree(victims, tmp_path / "family", "family") as family:
        child = children(family.pid)[1]
        os.kill(child, signal.SIGSTOP)
        wait_until("stopped", lambda: states(child) == {"T"})
        monkeypatch.setenv("MIGRATE_FAULT", "source-halted:kill")
        with pytest.raises(Failed):
            family.move()
        others = [pid for pid in family.everybody if pid != child]
        wait_until("let go", lambda: not any(states(pid) & {"T", "t"} for pid in others))
        assert states(child) == {"T"} and status_field(child, "TracerPid") == ["0"]
        os.kill(child, signal.SIGCONT)
        family.verdict()


def test_processes_come_and_go(victims: Victims, tmp_path: Path) -> None:
    """They are followed, without starting all over."""
    with tree(victims, tmp_path / "restless", "restless") as family:
        family.move()
        family.verdict()

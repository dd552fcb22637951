"""`migrate dump` and `migrate restore` of whole trees of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.kernel.checkpoints import migrate, reap, without_a_trace
from tests.kernel.onward import Tree, tree
from tests.moves import PROGRAM
from tests.tasks import children, status_field, wait_until
from tests.victims import Victims

NAMES = ["family", "shares", "kinfolk"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def ended(family: Tree) -> None:
    """The originals are gone, and their numbers are free."""
    assert family.starter.wait(30) == -signal.SIGKILL
    reap()


def follow(family: Tree, pid: int) -> None:
    """The restored ones take their place."""
    family.pid = pid
    parent = int(status_field(pid, "PPid")[0])
    if parent != os.getpid():
        family.overseers.append(parent)


def living(family: Tree) -> list[int]:
    """All but those that have ended."""
    return [pid for pid in family.everybody if status_field(pid, "State")[0] != "Z"]


@pytest.mark.parametrize("name", NAMES)
def test_to_disk_and_back(victims: Victims, tmp_path: Path, name: str) -> None:
    """With the numbers that they had."""
    directory = tmp_path / "checkpoint"
    with tree(victims, tmp_path / name, name) as family:
        before, everybody = living(family), family.everybody
        told, _ = migrate("dump", str(family.pid), directory)
        assert told["processes"] == len(before) and told["pid"] == family.pid
        ended(family)
        shown, _ = migrate("show", directory)
        assert [each["pid"] for each in shown["processes"]] == before
        told, _ = migrate("restore", directory)
        assert told["processes"] == len(before) and told["new_pid"] == family.pid
        assert sorted(family.everybody) == sorted(everybody)
        follow(family, told["new_pid"])
        family.verdict()
    reap()


@pytest.mark.parametrize("name", NAMES)
def test_beside_the_originals(victims: Victims, tmp_path: Path, name: str) -> None:
    """Their numbers are taken: it is a PID namespace of their own. Out of a stream, which has them one by one too."""
    with tree(victims, tmp_path / name, name) as family:
        dumping = subprocess.Popen([PROGRAM, "dump", "--stream", str(family.pid)], stdout=subprocess.PIPE)
        with dumping:
            kept = tmp_path / "stream"
            assert dumping.stdout is not None
            kept.write_bytes(dumping.stdout.read())
        assert dumping.returncode == 0
        assert family.starter.wait(30) == -signal.SIGKILL
        # One of the numbers is somebody else's by now, or still waited for.
        with kept.open("rb") as stream:
            told, _ = migrate("restore", "-", stdin=stream)
        follow(family, told["new_pid"])
        family.verdict()
    reap()


def test_a_series(victims: Victims, tmp_path: Path) -> None:
    """Pages of every one of them are taken from the checkpoint before."""
    directory = tmp_path / "series"
    with tree(victims, tmp_path / "family", "family") as family:
        first, _ = migrate("dump", "--track", "--leave-running", str(family.pid), directory)
        second, _ = migrate("dump", "--track", str(family.pid), directory)
        assert second["pages"] >= first["pages"] // 2 and second["bytes"] < first["bytes"] / 2
        ended(family)
        told, _ = migrate("restore", directory)
        follow(family, told["new_pid"])
        family.verdict()
    reap()


@pytest.mark.parametrize("point", ["preflight", "tracked", "round", "rehearsed", "frozen", "sent"])
def test_a_dump_that_fails_leaves_all_of_them_as_they_were(
    victims: Victims, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "checkpoint"
    with tree(victims, tmp_path / "shares", "shares") as family:
        monkeypatch.setenv("MIGRATE_FAULT", f"{point}:fail")
        migrate("dump", str(family.pid), directory, code=5)
        monkeypatch.delenv("MIGRATE_FAULT")
        assert without_a_trace(directory)
        for pid in family.everybody:
            wait_until("let go", lambda pid=pid: status_field(pid, "TracerPid") == ["0"])
        family.verdict()


@pytest.mark.parametrize("point", ["created", "filled", "restored"])
def test_a_restore_that_fails_leaves_nothing(
    victims: Victims, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "checkpoint"
    with tree(victims, tmp_path / "family", "family") as family:
        migrate("dump", str(family.pid), directory)
        ended(family)
        monkeypatch.setenv("MIGRATE_FAULT", f"{point}:fail")
        migrate("restore", directory, code=5)
        monkeypatch.delenv("MIGRATE_FAULT")
        reap()
        assert not children(os.getpid())
        told, _ = migrate("restore", directory)
        follow(family, told["new_pid"])
        family.verdict()
    reap()

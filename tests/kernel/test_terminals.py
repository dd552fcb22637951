"""Trees that have both ends of pseudo-terminals, on this machine: where their numbers are taken, of course."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.engine.image.codec import decode
from migrate.engine.kinds import terminal_reader
from migrate.engine.preview import Preview
from migrate.engine.source import Source
from migrate.errors import Failed
from tests.kernel.checkpoints import migrate, reap
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


@pytest.mark.parametrize(("number", "advice"), [(errno.EPERM, "as root"), (errno.EIO, "dev.tty.legacy_tiocsti=1")])
def test_where_nobody_may_type(number: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits would be lost, so it is not looked at."""
    monkeypatch.setattr(terminal_reader, "cannot_type", lambda: number)
    program = "import os, pty, time; pty.openpty(); print(flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as victim:
        source = Source(lambda *frame: None)
        try:
            assert victim.stdout is not None and victim.stdout.readline()
            problems = decode(Preview, source.do_inspect(victim.pid)[1]).problems
            assert any("may not put" in problem.what and advice in problem.advice for problem in problems)
        finally:
            source.close()
            victim.kill()


def test_there_and_on(victims: Victims, tmp_path: Path) -> None:
    with tree(victims, tmp_path / "terminals", "terminals") as family:
        family.move()
        family.move()
        family.verdict()


def test_a_session_whose_processes_share_things(victims: Victims, tmp_path: Path) -> None:
    """Of those that share a descriptor table one has no controlling terminal, and one has."""
    with tree(victims, tmp_path / "shells", "shells") as family:
        family.move()
        family.move("--max-rounds", "2", "--no-converge", "continue")
        family.verdict()


@pytest.mark.parametrize("options", [(), ("--leave-running",)])
def test_to_disk_and_back(victims: Victims, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Also beside those that go on, who have their terminals as they were."""
    directory = tmp_path / "checkpoint"
    with tree(victims, tmp_path / "terminals", "terminals") as family:
        original = family.pid
        before = terminals(original)
        migrate("dump", *options, str(original), directory)
        if not options:
            assert family.starter.wait(30) == -signal.SIGKILL
        told, _ = migrate("restore", directory)
        family.pid = told["new_pid"]
        family.left.append(original)
        parent = int(status_field(family.pid, "PPid")[0])
        if parent != os.getpid():
            family.overseers.append(parent)
        assert terminals(family.pid) == before
        family.verdict()
        if options:
            assert family.starter.wait(30) == 0 and not family.err
    reap()


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

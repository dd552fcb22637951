"""`migrate status` and `migrate recover` on this machine alone, where the destination is gone for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import journal, settling
from agents.journal import DONE, INTENT, LOCKS, ROLLED_BACK, SOURCE, Directory
from migrate.engine.image.codec import encode
from migrate.engine.kinds.locks import FLOCK, Held, Lock
from tests.moves import PROGRAM
from tests.tasks import status_field, wait_until

NOWHERE = {"dest": "root@127.0.0.1", "port": 1, "identities": [], "ssh_config": "none", "jump": None, "sudo": False}
Process = subprocess.Popen[bytes]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """One with a lock by descriptor 0."""
    with (tmp_path / "locked").open("w") as locked, subprocess.Popen(["sleep", "1000"], stdin=locked) as made:
        wait_until("asleep", lambda: status_field(made.pid, "Name") == ["sleep"])
        yield made
        made.kill()


def migrate(*arguments: str, code: int = 0) -> str:
    """The command, and all that it says. In a process of its own: its threads stay for a while."""
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done
    return " ".join((done.stdout + done.stderr).split())


def stopped(process: Process) -> None:
    process.send_signal(signal.SIGSTOP)
    wait_until("stopped", lambda: status_field(process.pid, "State")[0] == "T")


def noted(process: Process, *states: str, host: str = "", start: int = 0, with_it: Process | None = None) -> str:
    """A journal of a migration of it whose command was killed; the id. ``with_it``: what moved together with it."""
    about: dict[str, Any] = {"comm": "sleep", "host": host or os.uname().nodename, **NOWHERE}
    about["start"] = settling.start_time(process.pid) + start
    if with_it is not None:
        about["people"] = [settling.person(each.pid) for each in (process, with_it)]
    id = journal.new_id()
    with Directory.opened() as directory, directory.create(id, SOURCE, pid=process.pid, **about) as record:
        for each in states:
            lock = encode(Held((Lock(FLOCK, 0, True, 0, None),))).hex()
            fields: dict[str, dict[str, Any]] = {INTENT: {"halted": True}, LOCKS: {"held": lock}}
            record.append(each, **fields.get(each, {}))
    return id


def last(id: str) -> str:
    with Directory.opened() as directory, directory.open(id, SOURCE) as record:
        return record.records()[-1].state


def runs(process: Process) -> bool:
    return status_field(process.pid, "State")[:1] not in (["T"], ["t"], ["Z"], [])


def test_nothing_is_known() -> None:
    assert migrate("status") == "no migration is known of"
    assert migrate("recover") == "nothing is in doubt here"


def test_a_table(process: Process, state: Path) -> None:
    ids = [noted(process, *states) for states in ((INTENT, DONE), (INTENT,), (ROLLED_BACK,), ())]
    path = state / "state" / "migrate" / "journal" / f"{ids[2]}.source"
    path.write_bytes(path.read_bytes().replace(b"sleep", b"sleeq"))
    out = subprocess.run([PROGRAM, "status"], check=True, capture_output=True, text=True).stdout
    lines = {line.split()[0]: line for line in out.splitlines() if line[:2].isdigit()}
    for id, outcome in zip(ids, ("moved", "in doubt", "unknown", "broken off"), strict=True):
        assert lines[id].endswith(outcome), lines[id]
    assert f"{process.pid} (sleep)  to root@127.0.0.1" in lines[ids[0]]
    said = migrate("status")
    assert "line 1: its checksum is wrong" in said
    assert any(said.endswith(f"to settle what is open here: migrate recover {id}") for id in (ids[1], ids[3]))
    told = {each["id"]: each["outcome"] for each in json.loads(migrate("--json", "status"))}
    assert told == dict(zip(ids, ("moved", "in doubt", "unknown", "broken off"), strict=True))


def test_it_cannot_be_asked(process: Process) -> None:
    """So nothing is done, and what forcing it risks is said."""
    stopped(process)
    id = noted(process, INTENT)
    err = migrate("recover", code=6)
    assert "cannot tell what became of it" in err and f"recover {id} --abort" in err and "runs twice" in err
    assert f"recover {id} --commit" in err and "it is lost" in err
    assert last(id) == INTENT and not runs(process) and process.poll() is None


@pytest.mark.parametrize("how", ["--abort", "--commit"])
def test_of_a_tree_all_go_on_or_all_end(process: Process, how: str) -> None:
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) as other:
        try:
            for each in (process, other):
                stopped(each)
            id = noted(process, INTENT, with_it=other)
            migrate("recover", id, how)
            if how == "--abort":
                wait_until("both run", lambda: runs(process) and runs(other))
            else:
                wait_until("both have ended", lambda: process.poll() is not None and other.poll() is not None)
        finally:
            other.kill()


def test_broken_off_with_a_tree(process: Process) -> None:
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) as other:
        try:
            id = noted(process, with_it=other)
            assert "rolled back" in migrate("recover", id)
            assert runs(process) and runs(other)
        finally:
            other.kill()


def test_forced_to_go_on_here(process: Process, state: Path) -> None:
    """With the locks that it had released."""
    stopped(process)
    id = noted(process, LOCKS, INTENT)
    assert "by --abort; nobody knows whether it runs on root@127.0.0.1 too" in migrate("recover", id, "--abort")
    wait_until("running", lambda: runs(process))
    assert last(id) == ROLLED_BACK
    assert "FLOCK  ADVISORY  WRITE" in Path(f"/proc/{process.pid}/fdinfo/0").read_text()
    assert "rolled back, and nothing is to be done" in migrate("recover", id, "--commit") and runs(process)


def test_forced_to_be_there(process: Process) -> None:
    stopped(process)
    id = noted(process, INTENT)
    assert "by --commit; nobody has seen it run" in migrate("recover", id, "--commit")
    assert process.wait(5) == -signal.SIGKILL and last(id) == DONE


def test_one_that_runs_is_not_ended_for_another_that_may_run(process: Process) -> None:
    """Killed between INTENT and the SIGSTOP: it has run since."""
    id = noted(process, INTENT)
    assert "would make it run twice" in migrate("recover", id, "--commit", code=6)
    assert runs(process) and last(id) == INTENT


def test_broken_off(process: Process) -> None:
    id = noted(process, LOCKS)
    assert "broken off before the commit" in migrate("recover")
    assert last(id) == ROLLED_BACK and runs(process)
    assert "FLOCK" in Path(f"/proc/{process.pid}/fdinfo/0").read_text()


def test_another_process_has_its_number(process: Process) -> None:
    id = noted(process, INTENT, start=-100)
    migrate("recover", id, "--commit")
    assert last(id) == DONE and runs(process)
    id = noted(process, start=-100)
    assert "had ended here" in migrate("recover", id) and runs(process)


def test_of_another_host(process: Process) -> None:
    id = noted(process, host="elsewhere")
    assert "is of elsewhere, which shares this directory" in migrate("recover", id, code=5)
    assert last(id) == journal.BEGUN


def test_its_command_lives(process: Process) -> None:
    id = noted(process, INTENT)
    with Directory.opened() as directory, directory.open(id, SOURCE) as record:
        assert record.lock()
        assert "is under way: its command still runs" in migrate("recover", id, code=5)
        assert "under way" in migrate("status")


def test_from_another_time_namespace(process: Process) -> None:
    """Who asks may have been migrated meanwhile, and sees by another clock when a process was started."""
    asked = "import sys; from agents import settling; print(settling.fate(int(sys.argv[1]), int(sys.argv[2])))"
    for offset in (100_000, -100):
        inside = ["unshare", "--time", f"--boottime={offset}", "--fork", "--", sys.executable, "-c", asked]
        start = settling.start_time(process.pid)
        for seen, fate in ((start, settling.LIVES), (start + 100, settling.GONE)):
            done = subprocess.run([*inside, str(process.pid), str(seen)], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == fate

"""Unix sockets move with all that are connected to them, on this machine and to disk and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.errors import Failed
from tests.kernel.checkpoints import Job, Keep, dump, keeping, restore
from tests.kernel.onward import tree
from tests.migration.scene import POINTS
from tests.tasks import wait_until
from tests.victims import Victims

# Listens under a path and under an abstract name, has a connection of each, and in the end makes more.
LISTENS = """
import os, socket, sys, time
names = [sys.argv[1], "\\0" + sys.argv[1]]
listening, clients, servers = [], [], []
for name in names:
    listening.append(socket.socket(socket.AF_UNIX))
    listening[-1].bind(name)
    listening[-1].listen()
    clients.append(socket.socket(socket.AF_UNIX))
    clients[-1].connect(name)
    servers.append(listening[-1].accept()[0])
    clients[-1].sendall(b"early")
os.chmod(names[0], 0o600)
print("ready", flush=True)
while not os.path.exists(os.environ["VICTIM_GO"]):
    time.sleep(0.01)
for name, one, client, server in zip(names, listening, clients, servers):
    assert server.recv(10) == b"early" and os.fsencode(client.getpeername()) == name.encode()
    again = socket.socket(socket.AF_UNIX)
    again.connect(name)
    accepted, _ = one.accept()
    again.sendall(b"late")
    assert accepted.recv(10) == b"late"
assert os.stat(names[0]).st_mode & 0o777 == 0o600
print("pass", flush=True)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Ends what it is given."""
    with keeping() as add:
        yield add


@pytest.mark.parametrize("name", ["socketpairs", "relatives", "listeners", "callers", "datagrams", "flying"])
def test_they_notice_nothing(victims: Victims, tmp_path: Path, name: str) -> None:
    # An abstract name is taken as long as the process here is there.
    argument = ["not-abstract"] if name in ("listeners", "datagrams") else []
    with tree(victims, tmp_path / name, name, *argument) as family:
        family.move()
        family.verdict()


@pytest.mark.parametrize("point", POINTS[1:])
@pytest.mark.parametrize("name", ["relatives", "listeners", "callers", "datagrams", "flying"])
def test_a_move_that_fails_leaves_all_as_it_was(victims: Victims, tmp_path: Path, name: str, point: str) -> None:
    """What is queued is there, names lead to the sockets here, and nothing has been left beside them."""
    with tree(victims, tmp_path / name, name, "not-abstract") as family:
        with pytest.raises(Failed):
            family.move(fault=f"{point}:fail")
        assert not list(family.directory.glob(".migrate-*"))
        family.verdict()


@pytest.mark.parametrize("name", ["socketpairs"])
def test_to_disk_and_back(victims: Victims, tmp_path: Path, keep: Keep, name: str) -> None:
    out, go = tmp_path / "out", tmp_path / "go"
    environment = {**os.environ, "VICTIM_GO": str(go), "VICTIM_DIR": str(tmp_path)}
    with out.open("wb") as file:
        job = keep(Job.start(victims(name), stdout=file, stderr=file, env=environment))
    wait_until("ready", lambda: out.read_text() == "ready\n" or not job.alive)
    dump(job, tmp_path / "checkpoint")
    again, _ = restore(tmp_path / "checkpoint")
    keep(again)
    go.touch()
    again.wait_gone()
    assert out.read_text() == "ready\npass\n"


def test_names_are_there_again(tmp_path: Path, keep: Keep) -> None:
    """After a process has been dumped: in place of the file that it has left, or of none; twice from one checkpoint."""
    out, go, name = tmp_path / "out", tmp_path / "go", tmp_path / "socket"
    with out.open("wb") as file:
        environment = {**os.environ, "VICTIM_GO": str(go)}
        command = [sys.executable, "-c", LISTENS, str(name)]
        job = keep(Job.start(*command, stdout=file, stderr=file, env=environment))
    wait_until("ready", lambda: out.read_text() == "ready\n" or not job.alive, 20)
    dump(job, tmp_path / "checkpoint")
    for _ in range(2):
        again, _ = restore(tmp_path / "checkpoint")
        keep(again)
        assert name.is_socket() and not list(tmp_path.glob(".migrate-*"))
        if not go.exists():
            assert again.alive
            again.close()
            name.unlink()
            go.touch()
    again.wait_gone()
    assert out.read_text() == "ready\npass\n"

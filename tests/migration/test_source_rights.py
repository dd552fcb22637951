"""Who may move what: another user's process, by sudo where there is one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from tests import moves
from tests.hosts import Pair
from tests.logins import USERS
from tests.moves import Outcome


def become(user: str) -> Sequence[str]:
    """What a command line begins with to be run as ``user``."""
    number = str(USERS[user])
    return ("setpriv", "--reuid", number, "--regid", number, "--clear-groups")


def move_as(user: str, pair: Pair, pid: int) -> Outcome:
    """Run the command as ``user`` of node1, with a copy of the key: ssh keys are their owner's only."""
    home = pair.directory / f"home-{user}-{pid}"
    home.mkdir()
    shutil.copy(pair.directory / "id_ed25519", home / "key")
    text = pair.a.ssh_config.read_text().replace(str(pair.directory / "id_ed25519"), str(home / "key"))
    (home / "config").write_text(text)
    for path in (home, *home.iterdir()):
        shutil.chown(path, USERS[user], USERS[user])
    (home / "key").chmod(0o600)
    # The clone and its Python may be in root's home, where other users find nothing without this capability.
    reads = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    command = [*become(user), *reads, moves.PROGRAM, "--json", "-F", str(home / "config"), str(pid), pair.b.destination]
    environment = {"HOME": str(home), "XDG_STATE_HOME": str(home), "XDG_CACHE_HOME": str(home), "USER": user}
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return moves.finish(pair.a.popen(command, stdin=nothing, stdout=pipe, stderr=pipe, text=True, env=environment))


def test_ones_own_process(two_hosts: Pair) -> None:
    task = two_hosts.a.spawn([*become("guest"), "sleep", "1000"])
    outcome = move_as("guest", two_hosts, task.pid)
    assert outcome.code == 0 and "sudo" not in outcome.err, outcome.err
    assert not task.alive and two_hosts.b.adopt(outcome.report["new_pid"]).alive


def test_another_users_process_by_sudo(two_hosts: Pair) -> None:
    task = two_hosts.a.spawn(["sleep", "1000"])
    outcome = move_as("mover", two_hosts, task.pid)
    assert outcome.code == 0, outcome.err
    assert "belongs to user 0" in outcome.err and "by sudo" in outcome.err
    assert not task.alive and two_hosts.b.adopt(outcome.report["new_pid"]).alive


def test_another_users_process_without_sudo(two_hosts: Pair) -> None:
    task = two_hosts.a.spawn(["sleep", "1000"])
    outcome = move_as("guest", two_hosts, task.pid)
    assert outcome.code == 3 and task.alive, outcome.err
    assert "belongs to user 0" in outcome.err and "sudo did not help" in outcome.err and "run as root" in outcome.err

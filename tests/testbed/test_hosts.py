"""The test bed itself: two hosts that look like two machines, and that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import hosts as bed
from tests import moves
from tests.hosts import Pair
from tests.logins import PASSWORD
from tests.tasks import status_field, wait_until
from tests.victims import Victims, check_counter


def ssh(pair: Pair, command: str, timeout: float = 20) -> str:
    config = str(pair.a.ssh_config)
    return pair.a.run(["ssh", "-F", config, "-o", "BatchMode=yes", pair.b.destination, command], timeout=timeout).stdout


def test_ssh_reaches_the_other_host(two_hosts: Pair) -> None:
    name, user, state, listing = ssh(two_hosts, "hostname; id -un; echo $XDG_STATE_HOME; ls /proc/net/tcp").split()
    assert (name, user) == ("node2", "root")
    assert Path(state) == two_hosts.b.directory / "state"
    assert two_hosts.a.xdg != two_hosts.b.xdg


def test_namespaces_are_separate_and_the_filesystem_is_shared(two_hosts: Pair) -> None:
    for space in ("pid", "net", "mnt", "uts", "ipc"):
        links = {os.readlink(f"/proc/{pid}/ns/{space}") for pid in (two_hosts.a.init, two_hosts.b.init, os.getpid())}
        assert len(links) == 3, space
    shared = two_hosts.directory / "shared"
    two_hosts.a.run(["sh", "-c", f"echo hello > {shared}"])
    assert two_hosts.b.run(["cat", str(shared)]).stdout == "hello\n"
    for place in ("/run", "/dev/shm"):
        two_hosts.a.run(["touch", f"{place}/only-here"])
        assert "only-here" not in two_hosts.b.run(["ls", place]).stdout
        two_hosts.a.run(["rm", f"{place}/only-here"])


def test_private_tmp() -> None:
    with bed.two_hosts(private_tmp=True) as pair:
        assert ssh(pair, "ls /tmp").split() == [pair.directory.name]


def test_two_pairs_at_once(two_hosts: Pair) -> None:
    with bed.two_hosts() as other:
        assert other.a.address != two_hosts.a.address
        assert ssh(other, "hostname") == ssh(two_hosts, "hostname") == "node2\n"


def test_users(two_hosts: Pair) -> None:
    config = str(two_hosts.a.ssh_config)
    command = ["ssh", "-F", config, "-o", "BatchMode=yes"]
    for user, answer in (("mover", "0\n"), ("guest", "")):
        options = [*command, f"{user}@{two_hosts.b.address}"]
        assert two_hosts.a.run([*options, "id -un; pwd"]).stdout == f"{user}\n{two_hosts.b.directory}/home/{user}\n"
        assert two_hosts.a.run([*options, "sudo -n id -u"], check=False).stdout == answer


def test_password(two_hosts: Pair) -> None:
    options = ["-F", str(two_hosts.a.ssh_config), "-o", "PreferredAuthentications=password"]
    ask = two_hosts.directory / "askpass"
    for password, status in ((PASSWORD, 0), ("wrong", 255)):
        ask.write_text(f"#!/bin/sh\necho '{password}'\n")
        ask.chmod(0o755)
        done = two_hosts.a.run(["ssh", *options, f"guest@{two_hosts.b.address}", "id -u"], check=False,
            env={"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"})
        assert done.returncode == status, done.stderr


def test_the_command_answers_on_a_host(two_hosts: Pair) -> None:
    outcome = moves.finish(moves.start(two_hosts.a, 99_999, two_hosts.b.destination))
    assert outcome.code != 0 and outcome.report["ok"] is False and outcome.report["pid"] == 99_999


def test_a_spawned_task_has_numbers_on_both_sides(two_hosts: Pair) -> None:
    task = two_hosts.a.spawn(["sleep", "1000"])
    assert Path(f"/proc/{task.outer}/comm").read_text() == "sleep\n"
    assert (two_hosts.a.proc / str(task.pid) / "comm").read_text() == "sleep\n"
    assert two_hosts.a.host_pid(task.pid) == task.outer and two_hosts.a.inner_pid(task.outer) == task.pid
    assert task.pid in two_hosts.a.pids() and task.outer in two_hosts.a.outer_pids()
    assert task.outer not in two_hosts.b.outer_pids()
    fields = Path(f"{two_hosts.a.proc}/{task.pid}/stat").read_text().rpartition(")")[2].split()
    assert fields[2:4] == [str(task.pid)] * 2, "it leads a session of its own, which has a number in the host"
    with pytest.raises(ProcessLookupError):
        two_hosts.b.inner_pid(os.getpid())


def test_spawned_task_exit_status(two_hosts: Pair) -> None:
    task = two_hosts.a.spawn(["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE)
    assert task.starter and task.starter.stdin
    task.starter.stdin.close()
    assert task.wait() == 7
    other = two_hosts.a.spawn(["sleep", "1000"])
    other.signal(signal.SIGTERM)
    assert other.wait() in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_processes_in_a_nested_namespace_belong_to_the_host(two_hosts: Pair) -> None:
    task = two_hosts.b.spawn(["unshare", "--pid", "--fork", "--kill-child", "sleep", "1000"])

    def inside() -> list[int]:
        """Our numbers of what is in a PID namespace below the host's."""
        return [pid for pid in two_hosts.b.outer_pids() if len(status_field(pid, "NSpid")) == 3]

    wait_until("the nested sleep", inside)
    nested = int(status_field(inside()[0], "NSpid")[1])
    adopted = two_hosts.b.adopt(nested)
    assert status_field(adopted.outer, "NSpid") == [str(adopted.outer), str(nested), "1"]
    assert task.alive
    two_hosts.finish()
    assert adopted.outer not in two_hosts.b.outer_pids()


def test_orphans_are_reaped(two_hosts: Pair) -> None:
    before = two_hosts.b.pids()
    two_hosts.b.run(["sh", "-c", "(sleep 0.05 &) ; exit 0"])
    wait_until("the orphan being reaped", lambda: two_hosts.b.pids() == before)


def test_link_down_and_up(two_hosts: Pair) -> None:
    two_hosts.b.link_down()
    with pytest.raises(subprocess.TimeoutExpired):
        ssh(two_hosts, "true", timeout=1)
    two_hosts.b.link_up()
    assert ssh(two_hosts, "hostname") == "node2\n"


def test_throttle(two_hosts: Pair) -> None:
    two_hosts.a.throttle("80mbit")
    start = time.monotonic()
    ssh(two_hosts, f"cat > /dev/null <<end\n{'x' * 100_000}\nend")  # the command line itself travels
    config = str(two_hosts.a.ssh_config)
    upload = f"head -c 5000000 /dev/zero | ssh -F {config} -o Compression=no node2 'cat > /dev/null'"
    two_hosts.a.run(["sh", "-c", upload])
    assert time.monotonic() - start > 0.4, "5 MB at 10 MB/s"


def test_cut_ssh(two_hosts: Pair) -> None:
    session = two_hosts.a.spawn(["ssh", "-F", str(two_hosts.a.ssh_config), "node2", "echo in; sleep 1000"],
        stdout=subprocess.PIPE)
    assert session.starter and session.starter.stdout and session.starter.stdout.readline() == b"in\n"
    assert two_hosts.b.cut_ssh() >= 1
    assert session.wait() == 255
    wait_until("the remote command", lambda: len(two_hosts.b.pids()) <= 2)
    for pid in two_hosts.b.pids():
        if (two_hosts.b.proc / str(pid) / "comm").read_text() == "sleep\n":
            two_hosts.b.adopt(pid)
    assert ssh(two_hosts, "hostname") == "node2\n"


LONG_TEST = """
import time
from tests.hosts import two_hosts
with two_hosts() as pair:
    print(pair.a.init, pair.b.init, pair.directory, flush=True)
    time.sleep(1000)
"""


def test_killed_test_leaves_no_host(two_hosts: Pair) -> None:
    root = Path(bed.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", LONG_TEST], stdout=subprocess.PIPE, text=True, cwd=root) as run:
        assert run.stdout
        first, second, directory = run.stdout.readline().split()
        run.kill()
    # we are the subreaper, so everything that the killed test had started is now for us to reap
    for _ in range(4):
        os.waitpid(-1, 0)
    assert not Path(f"/proc/{first}").exists() and not Path(f"/proc/{second}").exists()
    bed.sweep()
    assert not Path(directory).exists()


@pytest.mark.parametrize("victim", ["counter", "counter.py"])
def test_counter_victims(two_hosts: Pair, victims: Victims, victim: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    python = [sys.executable, str(Path(bed.__file__).parent / "victims" / victim)]
    program = python if victim.endswith(".py") else [victims(victim)]
    task = two_hosts.a.spawn([*program, str(log), "3"])
    wait_until("some lines", lambda: log.exists() and log.stat().st_size > 1000)
    wait_until("all threads", lambda: {line[:1] for line in log.read_bytes().splitlines()} == {b"0", b"1", b"2"})
    assert status_field(task.outer, "Threads") == ["3"]
    task.kill()
    with log.open() as lines:
        assert check_counter(lines, 3) > 100

"""Getting in, as people have SSH set up; and what is said by whom when it does not work: exit code 4, or 3 where we are
in but may not do it. What asyncssh is told is in tests/unit/test_ssh.py."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts import SEARCH, Host, Pair
from tests.migration.launcher import Launcher, Result
from tests.migration.terminal import Terminal, terminal
from tests.moves import PROGRAM
from tests.tasks import Task, wait_until

PORT = 2222
PASSPHRASE = "open sesame"


@dataclass
class User:
    """Somebody on node1 with a home of his own, and a process that is to be moved."""

    pair: Pair
    start: Launcher
    home: Path
    task: Task

    def writes(self, name: str, text: str) -> Path:
        """A file in ~/.ssh."""
        path = self.home / ".ssh" / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    @property
    def key(self) -> Path:
        return self.pair.directory / "id_ed25519"

    def known(self, *, port: int = 22, host: str = "node2") -> str:
        """A line of known_hosts with the key that the host does have."""
        address = {"node1": self.pair.a, "node2": self.pair.b}[host].address
        name = address if port == 22 else f"[{address}]:{port}"
        return f"{name} {(self.pair.directory / host / 'host_key.pub').read_text()}"

    def runs(self, *argv: str, **env: str) -> Result:
        """The command on node1; options come before, the process is put in."""
        return self.start.start("--json", *argv[:-1], str(self.task.pid), argv[-1], config=False,
            HOME=str(self.home), **{"SSH_AUTH_SOCK": "", **env}).wait()

    def moves(self, *argv: str, **env: str) -> Result:
        """An AssertionError unless that moves the process to node2."""
        result = self.runs(*argv, **env)
        assert result.code == 0 and result.report["ok"], result
        assert self.pair.b.adopt(result.report["new_pid"]).alive and not self.task.alive
        return result

    def fails(self, code: int, says: str, *argv: str, **env: str) -> Result:
        """An AssertionError unless that ends with the code and a sentence, and the process runs on."""
        result = self.runs(*argv, **env)
        assert result.code == code and not result.report["ok"], result
        assert re.search(says, result.err) and re.search(says, result.report["error"]), result
        assert "Traceback" not in result.err and self.task.alive
        return result


@pytest.fixture
def user(two_hosts: Pair, start: Launcher, tmp_path: Path) -> User:
    """Without a configuration, keys or known hosts."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    return User(two_hosts, start, tmp_path, two_hosts.a.spawn(["sleep", "1000"]))


@contextmanager
def listening(host: Host, port: int, *options: str) -> Iterator[None]:
    """Another sshd on the host; ``options`` are lines of its configuration."""
    sshd = shutil.which("sshd", path=SEARCH)
    assert sshd
    given = [word for option in options for word in ("-o", option)]
    listens = f":{port:04X} 00000000:0000 0A "
    with host.popen([sshd, "-D", "-f", str(host.directory / "sshd_config"), "-p", str(port), *given]) as process:
        try:
            table = Path(f"/proc/{host.init}/net/tcp")
            wait_until("sshd", lambda: listens in table.read_text() or process.poll() is not None)
            yield
        finally:
            process.kill()


# Ways in


def test_a_host_of_the_users_configuration(user: User) -> None:
    user.writes("hosts", user.known(port=PORT))
    user.writes("config", f"Host far\n HostName {user.pair.b.address}\n User root\n Port {PORT}\n"
        f" IdentityFile {user.key}\n UserKnownHostsFile ~/.ssh/hosts\n")
    with listening(user.pair.b, PORT):
        result = user.moves("far")
    assert result.report["dest"] == "far" and "moved" in result.err


@pytest.mark.parametrize("port", ["-p", "host:port"])
def test_options_of_the_command_line(user: User, port: str) -> None:
    user.writes("known_hosts", user.known(port=PORT))
    user.writes("config", "Nonsense\n")  # -F none: it is not looked at
    dest, *more = (user.pair.b.destination, "-p", str(PORT)) if port == "-p" else (f"{user.pair.b.destination}:{PORT}",)
    with listening(user.pair.b, PORT):
        user.moves("-F", "none", "-i", str(user.key), *more, dest)


@pytest.mark.parametrize("way", ["-J", "ProxyJump"])
def test_through_another_host(user: User, way: str) -> None:
    """node1's own sshd is on the way to node2."""
    user.writes("known_hosts", user.known() + user.known(host="node1"))
    hop = user.pair.a.destination
    jump = f"Host {user.pair.b.address}\n ProxyJump {hop}\n" if way == "ProxyJump" else ""
    config = user.writes("other", f"{jump}Host *\n IdentityFile {user.key}\n")
    before = connections(user.pair.a)
    user.moves("-F", str(config), *(["-J", hop] if way == "-J" else []), user.pair.b.destination)
    assert connections(user.pair.a) == before + 1


def connections(host: Host) -> int:
    """How many times somebody logged in there."""
    return (host.directory / "sshd.log").read_text().count("Accepted publickey")


def test_ssh_agent(user: User) -> None:
    user.writes("known_hosts", user.known())
    user.fails(4, "does not let root@.* in", user.pair.b.destination)
    socket = str(user.home / "agent")
    with user.pair.a.popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        try:
            wait_until("ssh-agent", lambda: os.path.exists(socket))
            user.pair.a.run(["ssh-add", "-q", str(user.key)], env={"SSH_AUTH_SOCK": socket})
            user.moves(user.pair.b.destination, SSH_AUTH_SOCK=socket)
        finally:
            agent.kill()


# No way in


def test_who_is_not_known(user: User) -> None:
    user.fails(4, "host key is not known; .*ssh-keyscan", "-i", str(user.key), user.pair.b.destination)


def test_who_is_somebody_else(user: User) -> None:
    """The address is known, with the other host's key."""
    user.writes("known_hosts", user.known(host="node1").replace(user.pair.a.address, user.pair.b.address))
    user.fails(4, "host key is not the one we know: .*ssh-keygen -R", "-i", str(user.key), user.pair.b.destination)


def test_nobody_there(user: User) -> None:
    user.writes("known_hosts", user.known())
    user.fails(4, "port 2223: connection refused; is sshd running", "-p", "2223", user.pair.b.destination)
    user.fails(4, "no such host", "root@no-such-host.invalid")
    user.fails(2, "no such file", "-i", str(user.home / "nothing"), user.pair.b.destination)


def test_a_key_that_does_not_fit(user: User) -> None:
    user.writes("known_hosts", user.known())
    stranger = user.home / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)], check=True)
    user.fails(4, "does not let root@.* in .tried: public key", "-i", str(stranger), user.pair.b.destination)


# At a terminal


@contextmanager
def asked(user: User) -> Iterator[Terminal]:
    """The command at a terminal; the key has a passphrase, and it is being asked for."""
    user.writes("known_hosts", user.known())
    locked = user.home / "locked"
    shutil.copy(user.key, locked)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(locked)], check=True)
    argv = [PROGRAM, "-i", str(locked), str(user.task.pid), user.pair.b.destination]
    with terminal(user.pair.a, argv, {"HOME": str(user.home), "SSH_AUTH_SOCK": ""}) as made:
        made.wait_shown(f"Passphrase for {locked}: ")
        yield made


def test_a_passphrase(user: User) -> None:
    with asked(user) as tty:
        assert not tty.echoes()
        tty.type("wrong\n")
        tty.wait_shown("Passphrase for", times=2)
        tty.type(f"{PASSPHRASE}\n")
        tty.wait_shown("moved ")
        assert tty.command.wait(20) == 0 and tty.echoes()
    assert PASSPHRASE not in tty.shown and not user.task.alive
    user.pair.b.adopt(user.task.pid)


def test_control_c_instead_of_a_passphrase(user: User) -> None:
    with asked(user) as tty:
        tty.type("\x03")
        assert tty.command.wait(20) == 130
        tty.wait_shown("interrupted and rolled back")
        assert tty.echoes(), "what is typed next is not shown"
    assert user.task.alive


def test_a_passphrase_without_a_terminal(user: User) -> None:
    user.writes("known_hosts", user.known())
    locked = user.home / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", str(locked)], check=True)
    says = "has a passphrase and there is no terminal to ask for it: add it to ssh-agent"
    user.fails(4, says, "-i", str(locked), user.pair.b.destination)


# In, but not able to


OLD = "import sys; sys.version_info = (3, 8, 1, 'final', 0); exec(sys.argv[1])"


@pytest.mark.parametrize(
    ("python", "says"),
    [(None, "no python3 there .*Python 3.9 or newer"), (OLD, "has Python 3.8.1; Python 3.9 or newer is needed")],
)
def test_no_python_there(user: User, python: str | None, says: str) -> None:
    directory = user.home / "bin"
    directory.mkdir()
    if python is not None:  # "$4": python3 -I -S -c LOADER
        script(directory / "python3", f'exec {sys.executable} -I -S -c {shlex.quote(python)} "$4"')
    # What the login shell has in its PATH is the machine's business.
    only = script(user.home / "only", f'PATH={directory}\nexport PATH\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    user.writes("known_hosts", user.known(port=PORT))
    with listening(user.pair.b, PORT, f"ForceCommand {only}"):
        user.fails(4, says, "-i", str(user.key), "-p", str(PORT), user.pair.b.destination)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_not_root_there(user: User) -> None:
    user.writes("known_hosts", user.known())
    key, address = str(user.key), user.pair.b.address
    user.fails(3, "connect as root, or use --sudo", "-i", key, f"guest@{address}")
    user.fails(4, "sudo wants a password and there is no terminal", "-i", key, "--sudo", f"guest@{address}")
    # sudo(8) takes core dumps from what it starts (rlimit_core), and it takes CAP_SYS_RESOURCE to have them back.
    user.task = user.pair.a.spawn(["prlimit", "--core=0", "sleep", "1000"])
    user.moves("-i", key, "--sudo", f"mover@{address}")

"""SSH against a real sshd on a private port: getting in, not getting in, streams, and the agent that travels."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from migrate.errors import Unreachable, UsageError
from migrate.transport import bootstrap
from migrate.transport.agent import ConnectionLost, open_agent
from migrate.transport.session import Process
from migrate.transport.ssh import Connection, Prompt, connect
from migrate.transport.target import Address, Destination, parse
from tests.unit.sshd import Sshd, keygen, sshd

SHELLS = [shell for shell in ("sh", "bash", "dash", "ksh", "zsh", "csh", "tcsh", "fish") if shutil.which(shell)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    directory = tmp_path_factory.mktemp("sshd")
    (directory / "bin").mkdir()
    # HOME: what root has in ~/.bashrc is none of our business
    environment = f"SetEnv HOME={directory} XDG_CACHE_HOME={directory}/cache XDG_STATE_HOME={directory}/state"
    path = f"{directory}/bin:{os.environ['PATH']}"
    with sshd(directory, f"{environment} PATH={path}", "LogLevel ERROR") as running:
        yield running


@pytest.fixture
def there(server: Sshd) -> Destination:
    return Destination("there", config=str(server.config))


@pytest.fixture
def keyless(server: Sshd, tmp_path: Path) -> Destination:
    """The same, but the configuration names no key."""
    lines = server.config.read_text().splitlines(keepends=True)
    config = tmp_path / "keyless"
    config.write_text("".join(line for line in lines if "IdentityFile" not in line))
    return Destination("there", config=str(config))


Test = Callable[[Connection], Awaitable[None]]


def linked(destination: Destination, test: Test, prompt: Prompt | None = None) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with connect(destination, prompt) as link:
                await test(link)

    trio.run(main)


async def nothing(link: Connection) -> None:
    await trio.lowlevel.checkpoint()


def refused(destination: Destination, says: str, prompt: Prompt | None = None) -> str:
    with pytest.raises(Unreachable, match=says) as caught:
        linked(destination, nothing, prompt)
    return str(caught.value)


async def output(process: Process) -> bytes:
    pieces = []
    while piece := await process.receive_some():
        pieces.append(piece)
    await process.wait_ended()
    return b"".join(pieces)


# Where to


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("node2", (None, "node2", None)),
        ("root@node2", ("root", "node2", None)),
        ("root@node2:2222", ("root", "node2", 2222)),
        ("a@b@node2", ("a@b", "node2", None)),
        ("[2001:db8::1]:22", (None, "2001:db8::1", 22)),
        ("x@[::1]", ("x", "::1", None)),
        ("2001:db8::1", (None, "2001:db8::1", None)),
        ("ssh://root@node2:22", ("root", "node2", 22)),
    ],
)
def test_spec(spec: str, address: tuple[str | None, str, int | None]) -> None:
    assert parse(spec) == Address(*address)


@pytest.mark.parametrize(
    "spec",
    [
        "", "@", "@node", "root@", ":22", "node:", "node:0", "node:70000", "node:x", "node:" + "9" * 5000,
        "-oProxyCommand=x", "a b", "$(x)", "$(x)@node", "-lroot@node", "no\x1bde",
    ],
)  # fmt: skip
def test_senseless_spec(spec: str) -> None:
    with pytest.raises(UsageError):
        parse(spec)


# Getting in


def test_config_alias(there: Destination, server: Sshd) -> None:
    async def test(link: Connection) -> None:
        assert link.destination == f"{server.user}@there" and link.cipher == "aes128-gcm@openssh.com"
        process = await link.run("echo out; echo err >&2; exit 3")
        assert await output(process) == b"out\n"
        assert (process.exit_status, process.last_words()) == (3, "exit status 3, err")
        process = await link.run("kill -9 $$")
        assert await output(process) == b"" and process.last_words() == "killed by SIGKILL"

    linked(there, test)


def test_options_of_the_command_line(server: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"UserKnownHostsFile {server.known_hosts}\nIdentityFile /no/such/key\nCiphers aes256-ctr\nIdentityAgent none\n"
    )

    async def test(link: Connection) -> None:
        assert link.cipher == "aes256-ctr"

    inside = Destination(f"{server.user}@127.0.0.1:{server.port}", identities=(str(server.key),), config=str(config))
    linked(inside, test)
    linked(replace(inside, spec=f"{server.user}@127.0.0.1:1", port=server.port), nothing)
    with pytest.raises(UsageError, match="-i /no/such"):
        linked(replace(inside, identities=(str(server.key), "/no/such")), nothing)
    config.write_text("Port many\n")
    with pytest.raises(UsageError, match="cannot read the ssh configuration"):
        linked(inside, nothing)


PUMP = """
import os, socket, sys, threading
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := there.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back).start()
while data := os.read(0, 65536):
    there.sendall(data)
there.shutdown(socket.SHUT_WR)
"""


@pytest.mark.parametrize("way", ["ProxyJump hop", "ProxyCommand", "-J"])
def test_through_another_host(server: Sshd, tmp_path: Path, way: str) -> None:
    (tmp_path / "pump.py").write_text(PUMP)
    line = {"ProxyCommand": f"ProxyCommand {sys.executable} {tmp_path}/pump.py %h %p", "-J": ""}.get(way, way)
    config = tmp_path / "config"
    config.write_text(
        f"Host far\n  HostName 127.0.0.1\n  {line}\n"
        f"Host hop\n  HostName 127.0.0.1\n  HostKeyAlias known-as\n"
        f"Host *\n  Port {server.port}\n  IdentityFile {server.key}\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {tmp_path}/known\n"
    )
    key = server.known_hosts.read_text().split(" ", 1)[1]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {key}")
    far = Destination("far", config=str(config), jump="hop" if way == "-J" else None)
    if "ProxyCommand" not in way:
        refused(far, r"^hop \(127.0.0.1\) port \d+: its host key is not known")
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {key}[known-as]:{server.port} {key}")

    async def test(link: Connection) -> None:
        process = await link.run("echo $SSH_CONNECTION")
        assert (await output(process)).split()[2] == b"127.0.0.1"
        assert link.destination.endswith("@far")

    linked(far, test)


def test_jumps_in_a_circle(server: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(UsageError, match="circle"):
        linked(Destination("a", config=str(config)), nothing)


def test_passphrase_is_asked_for(server: Sshd, tmp_path: Path, keyless: Destination) -> None:
    locked = tmp_path / "locked"
    keygen(locked, "open sesame")
    with (server.directory / "authorized_keys").open("a") as file:
        file.write(Path(f"{locked}.pub").read_text())
    inside = replace(keyless, identities=(str(locked),))
    asked: list[str] = []
    answers = iter(["wrong", "open sesame"])

    async def prompt(question: str) -> str | None:
        await trio.sleep(0.01)
        asked.append(question)
        return next(answers)

    linked(inside, nothing, prompt)
    assert asked == [f"Passphrase for {locked}: "] * 2
    said = refused(inside, "does not let")
    assert f"{locked} has a passphrase and there is no terminal" in said and "ssh-agent" in said


# Not getting in


def test_unknown_host_key(server: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host *\n  UserKnownHostsFile {tmp_path}/known\n  StrictHostKeyChecking no\n  IdentityFile {server.key}\n"
    )
    said = refused(Destination("127.0.0.1", port=server.port, config=str(config)), "host key is not known")
    assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> {tmp_path}/known" in said
    config.write_text(f"Host *\n  UserKnownHostsFile none\n  GlobalKnownHostsFile none\n  IdentityFile {server.key}\n")
    refused(Destination("127.0.0.1", port=server.port, config=str(config)), "host key is not known")


def test_changed_host_key(server: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "other")
    known = tmp_path / "known"
    known.write_text(f"# no key\nnonsense\n[127.0.0.1]:{server.port} {(tmp_path / 'other.pub').read_text()}")
    config = tmp_path / "config"
    config.write_text(f"Host *\n  UserKnownHostsFile {known}\n  IdentityFile {server.key}\n")
    said = refused(Destination("127.0.0.1", port=server.port, config=str(config)), "not the one we know")
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {known}" in said


def test_wrong_key(there: Destination, keyless: Destination, server: Sshd, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    keygen(stranger)
    said = refused(replace(keyless, identities=(str(stranger),)), "does not let")
    assert "tried: public key" in said and "authorized_keys" in said
    # All keys of -i are tried, and then those of the configuration.
    linked(replace(keyless, identities=(str(stranger), str(server.key))), nothing)
    linked(replace(there, identities=(str(stranger),)), nothing)


def test_nobody_there(there: Destination) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        refused(Destination("127.0.0.1", port=port, config="none"), "connection refused; is sshd running")
    refused(Destination("no-such-host.invalid", config="none"), "no such host")


def test_silence(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("ConnectTimeout 1\n")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the queue is full: no more SYN is answered
            refused(Destination("127.0.0.1", port=port, config=str(tmp_path / "config")), "no answer within 1 s|broke")


# Streams


def test_stream_rules(there: Destination) -> None:
    """What trio asks of a stream (trio.abc.HalfCloseableStream)."""

    async def test(link: Connection) -> None:
        echo = await link.run("exec cat")
        await echo.send_all(memoryview(b"hello"))
        assert await echo.receive_some(2) == b"he" and await echo.receive_some() == b"llo"
        with pytest.raises(ValueError):
            await echo.receive_some(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await echo.receive_some()
            await echo.wait_send_all_might_not_block()
            await echo.send_all(bytearray(b"x"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await echo.send_all(b"never sent")
        assert scope.cancelled_caught
        await echo.send_eof()
        await echo.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await echo.send_all(b"more")
        assert [await echo.receive_some() for _ in range(3)] == [b"", b"", b""]
        await echo.aclose()
        await echo.aclose()
        for call in (lambda: echo.send_all(b"x"), echo.receive_some, echo.send_eof):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        waiting = await link.run("exec sleep 100")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_while_waiting, waiting)
            await trio.testing.wait_all_tasks_blocked()
            await waiting.aclose()

    linked(there, test)


async def closed_while_waiting(process: Process) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await process.receive_some()


def test_back_pressure(there: Destination) -> None:
    """A reader that does not read stops the writer after a few MiB, and nothing is lost when it goes on."""

    async def test(link: Connection) -> None:
        process = await link.run("sleep 1.5; read line; wc -c")
        piece, sent = b"x" * (1 << 20), 0
        with trio.move_on_after(1):
            while True:
                await process.send_all(piece)
                sent += 1
        assert 2 <= sent <= 12
        await process.send_all(b"\n" + piece[1:])
        sent += 1
        await process.send_eof()
        assert await output(process) == b"%d\n" % (len(piece) - 1)
        await process.aclose()
        process = await link.run("head -c 50000000 /dev/zero; echo end")
        await trio.sleep(0.5)
        session: Any = process._session
        assert session._size <= 4 << 20
        assert len(await output(process)) == 50000004

    linked(there, test)


def test_broken_pipe(there: Destination) -> None:
    async def test(link: Connection) -> None:
        process = await link.run("echo that is all >&2; exit 7")
        await process.wait_ended()
        with pytest.raises(trio.BrokenResourceError, match="exit status 7, that is all"):
            await process.send_all(b"x")
        assert await process.receive_some() == b""

    linked(there, test)


# The agent


def test_archive_is_the_same_every_time() -> None:
    first = bootstrap.archive()
    bootstrap.archive.cache_clear()
    assert bootstrap.archive() == first and len(first[0]) < 200_000


@pytest.mark.parametrize("shell", SHELLS)
def test_loader_survives_the_login_shell(shell: str) -> None:
    assert len(bootstrap.command("sudo -n -- ")) < 1024  # csh: the longest word
    stage = base64.b64encode(zlib.compress(b"import os; print(os.read(0, 100))")) + b";"
    done = subprocess.run([shell, "-c", bootstrap.command()], input=stage + b"what follows", capture_output=True)
    assert done.stdout == b"migrate-ready b'what follows'\n", done.stderr
    assert subprocess.run([shell, "-c", bootstrap.command()], input=b"", capture_output=True).returncode != 0


async def hello(link: Connection, **options: Any) -> dict[str, Any]:
    async with bootstrap.agent_session(link, **options) as session:
        async with open_agent(session, "the destination") as agent:
            facts = await agent.request("hello")
            await agent.request("overseer", restorees=1)
            await agent.request("bye")
            return facts.meta


def test_agent_is_cached(there: Destination, server: Sshd) -> None:
    directory = server.directory / "cache" / "migrate"
    digest = bootstrap.archive()[1]

    async def test(link: Connection) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        sent: list[int] = []
        spy = Process.send_all

        async def send_all(self: Process, data: bytes | bytearray | memoryview) -> None:
            sent.append(len(data))
            await spy(self, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Process, "send_all", send_all)
            for _ in range(2):
                assert (await hello(link))["release"] == os.uname().release
        assert sent.count(len(bootstrap.archive()[0])) == 1, "it was sent again"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in directory.iterdir()] == [digest]
        assert (directory / digest).stat().st_mode & 0o777 == 0o600

        (directory / digest).write_bytes(b"raise SystemExit('evil')")
        await hello(link)
        assert (directory / digest).read_bytes() == bootstrap.archive()[0], "what was tampered with is still there"

        (directory / digest).unlink()
        directory.chmod(0o777)
        await hello(link)
        assert not (directory / digest).exists(), "others could write there"
        directory.chmod(0o700)
        directory.parent.chmod(0o777)
        await hello(link)
        assert not (directory / digest).exists(), "others could put another directory there"
        directory.parent.chmod(0o755)
        for index in range(9):
            (directory / f"old{index}").touch()
        await hello(link)
        assert len(list(directory.iterdir())) == 5

    linked(there, test)


def test_agent_without_a_cache(there: Destination, server: Sshd) -> None:
    cache = server.directory / "cache"

    async def test(link: Connection) -> None:
        shutil.rmtree(cache, ignore_errors=True)
        cache.write_text("in the way")
        try:
            await hello(link)
        finally:
            cache.unlink()

    linked(there, test)


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_no_python(there: Destination, server: Sshd) -> None:
    async def test(link: Connection) -> None:
        for text, says in (
            ("#!/bin/sh\necho not found >&2; exit 127\n", "no python3 there"),
            ("#!/bin/sh\necho SyntaxError: invalid syntax >&2; exit 1\n", "older than 3.6"),
            ("#!/bin/sh\nyes hello\n", "prints too much"),
            ("#!/bin/sh\nexit 5\n", "did not start: exit status 5"),
        ):
            python = script(server.directory / "bin" / "python3", text)
            try:
                with pytest.raises(Unreachable, match=says):
                    await hello(link)
            finally:
                python.unlink()

    linked(there, test)


def test_noise_of_the_login_shell(there: Destination, server: Sshd) -> None:
    async def test(link: Connection) -> None:
        text = f"#!/bin/sh\necho Welcome!\nexec {sys.executable} \"$@\"\n"
        python = script(server.directory / "bin" / "python3", text)
        try:
            await hello(link)
        finally:
            python.unlink()

    linked(there, test)


@pytest.mark.parametrize("newer", [False, True])
def test_old_python(tmp_path: Path, newer: bool) -> None:
    """A python3 that is too old hands over to a newer one beside it, or says what it is."""
    if newer:
        (tmp_path / "python3.11").symlink_to(sys.executable)
    text = (Path(__file__).parents[2] / "agents" / "bootstrap.py").read_text()
    text += "\nbootstrap(SOURCE, 'nonce', 'd', 0)\n"
    pretend = f"import sys; sys.version_info = (3, 7, 4, 'final', 0); SOURCE = {text!r}; exec(SOURCE)"
    done = subprocess.run(
        [sys.executable, "-c", pretend], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.stdout == ("nonce need \n" if newer else "nonce old 3.7.4\n"), done.stderr


SUDO = """#!/bin/sh
# sudo that wants a password
if [ "$1" = -n ]; then echo "sudo: a password is required" >&2; exit 1; fi
shift 2; prompt=$1; shift 2
for attempt in 1 2 3; do
    printf %s "$prompt" >&2
    IFS= read -r password || exit 1
    [ "$password" = secret ] && exec "$@"
    echo "Sorry, try again." >&2
done
echo "sudo: 3 incorrect password attempts" >&2
exit 1
"""


def test_sudo(there: Destination, server: Sshd) -> None:
    async def test(link: Connection) -> None:
        path = server.directory / "bin" / "sudo"
        answers: list[str | None] = []

        async def prompt(question: str) -> str | None:
            assert question == f"[sudo] password on {link.destination}: "
            await trio.lowlevel.checkpoint()
            return answers.pop(0)

        try:
            script(path, '#!/bin/sh\n[ "$1 $2" = "-n --" ] && shift 2 && exec "$@"\n')
            await hello(link, sudo=True)
            script(path, SUDO)
            with pytest.raises(Unreachable, match="sudo wants a password and there is no terminal"):
                await hello(link, sudo=True)
            answers[:] = ["secret"]
            await hello(link, sudo=True, prompt=prompt)
            answers[:] = ["wrong", "secret"]
            await hello(link, sudo=True, prompt=prompt)
            answers[:] = ["1", "2", "3"]
            with pytest.raises(Unreachable, match="3 incorrect password attempts"):
                await hello(link, sudo=True, prompt=prompt)
            answers[:] = [None]
            with pytest.raises(Unreachable, match="no password"):
                await hello(link, sudo=True, prompt=prompt)
            script(path, "#!/bin/sh\necho 'sudo: you may not' >&2; exit 1\n")
            with pytest.raises(Unreachable, match="--sudo: exit status 1, sudo: you may not"):
                await hello(link, sudo=True)
        finally:
            path.unlink()

    linked(there, test)


def test_a_connection_that_breaks(there: Destination) -> None:
    async def test(link: Connection) -> None:
        async with bootstrap.agent_session(link) as session, open_agent(session, "the destination") as agent:
            pid = (await agent.request("overseer", restorees=1))["pid"]
            await agent.request("hello")
            connection: Any = link._connection
            connection.abort()
            assert isinstance(await agent.wait_lost(), ConnectionLost)
            with pytest.raises(ConnectionLost):
                await agent.request("hello")
            with trio.fail_after(10):
                while Path(f"/proc/{pid}").exists():
                    await trio.sleep(0.01)

    linked(there, test)


def test_an_sshd_with_too_many_at_its_door_is_asked_again(tmp_path: Path) -> None:
    """MaxStartups: whoever comes when it is reached is turned away without a word of the protocol."""

    async def main(config: Path, port: int) -> None:
        first = await trio.open_tcp_stream("127.0.0.1", port)
        while not (await first.receive_some()).startswith(b"SSH-2.0"):  # who looked whether it listens is still there
            await first.aclose()
            first = await trio.open_tcp_stream("127.0.0.1", port)

        async def leaves() -> None:
            await trio.sleep(0.4)
            await first.aclose()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leaves)
                async with connect(Destination("there", config=str(config))) as link:
                    await nothing(link)

    with sshd(tmp_path, "MaxStartups 1", "LogLevel VERBOSE") as running:
        trio.run(main, running.config, running.port)
        log = running.log.read_text()
    assert "MaxStartups" in log and "Accepted publickey" in log

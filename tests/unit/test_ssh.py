"""SSH against a real sshd on a private port: getting in, not getting in, and streams."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from migrate.errors import UsageError
from migrate.transport.session import Process
from migrate.transport.ssh import Connection, connect
from migrate.transport.target import Address, Destination, parse
from tests.unit.dialling import linked, nothing, output, refused
from tests.unit.sshd import Sshd, keygen, sshd

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

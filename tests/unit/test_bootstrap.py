"""The agent that travels: past login shells and old Pythons, through sudo, into its cache."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from migrate.errors import Unreachable
from migrate.transport import bootstrap
from migrate.transport.agent import ConnectionLost, open_agent
from migrate.transport.session import Process
from migrate.transport.ssh import Connection
from migrate.transport.target import Destination
from tests.unit.dialling import linked
from tests.unit.sshd import Sshd

SHELLS = [shell for shell in ("sh", "bash", "dash", "ksh", "zsh", "csh", "tcsh", "fish") if shutil.which(shell)]


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

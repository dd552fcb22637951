"""How the destination agent travels: one archive, kept there by its digest, started by a first stage of text.

The command line holds a tiny loader only, because it must survive any login shell (csh takes no word over 1 kB, fish
treats a backslash in quotes in its own way) and because what comes next is read byte by byte, so that not one byte of
the frames behind it is lost in a buffer. What comes next is `agents/bootstrap.py`; it says whether it has the archive,
and takes it when not. One round trip in all when it is there, two when not.
"""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

import trio

import agents
from migrate import pie
from migrate.errors import Unreachable
from migrate.transport import frames
from migrate.transport.session import Process

_READY = b"migrate-ready"
_SUDO_PROMPT = "migrate-asks-for-a-password"
_LOADER = (
    "import os,zlib,base64;"
    f'os.write(1,b"{_READY.decode()} ");'
    'exec(zlib.decompress(base64.b64decode(b"".join(iter(lambda:os.read(0,1)or b";",b";")))))'
)
_AGENTS = Path(str(agents.__file__)).parent
_SHIPPED = (
    *("arguments.py", "cgroup.py", "commitment.py", "conversation.py", "custody.py", "destination.py", "elf.py"),
    *("hostfacts.py", "ia32.py", "journal.py", "libc.py", "log.py", "overseer.py", "pages.py", "private.py"),
    "settling.py",
)
_PACKAGES = ("agents", "migrate", "migrate/pie", "migrate/transport")
_NOISE = 64 << 10  # bytes that a login shell may print before we give up on it
_PATIENCE = 60.0  # seconds until the first stage must have answered
_ATTEMPTS = 3  # passwords for sudo

Prompt = Callable[[str], Awaitable[str | None]]


class Link(Protocol):
    """A connection that runs commands."""

    @property
    def destination(self) -> str:
        """For sentences: ``root@node2``."""

    async def run(self, command: str) -> Process:
        """Starts a command."""


@cache
def archive() -> tuple[bytes, str]:
    """The archive, the same bytes every time, and its digest."""
    buffer = io.BytesIO()
    contents = {f"{package}/__init__.py": b"" for package in _PACKAGES}
    contents |= {f"agents/{name}": (_AGENTS / name).read_bytes() for name in _SHIPPED}
    contents["migrate/transport/frames.py"] = Path(frames.__file__).read_bytes()
    contents["migrate/pie/blob.bin"] = pie.blob()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100600 << 16
            file.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    packed = buffer.getvalue()
    return packed, hashlib.blake2b(packed, digest_size=16).hexdigest()


def command(sudo: str = "") -> str:
    """What the login shell is given. ``sudo``: the words before, if any."""
    return f"exec {sudo}python3 -I -S -c '{_LOADER}'"


def first_stage(nonce: str) -> bytes:
    """What the loader reads: `agents/bootstrap.py` and the call of it, in a form that a newer Python can be handed."""
    packed, digest = archive()
    source = (_AGENTS / "bootstrap.py").read_text() + f"\nbootstrap(SOURCE, {nonce!r}, {digest!r}, {len(packed)})\n"
    return base64.b64encode(zlib.compress(f"SOURCE = {source!r}\nexec(SOURCE)\n".encode(), 9)) + b";"


@asynccontextmanager
async def agent_session(link: Link, sudo: bool = False, prompt: Prompt | None = None) -> AsyncIterator[Process]:
    """A session with the agent running in it, ready for frames (see `migrate.transport.agent.open_agent`).

    :param sudo: become root there; ``prompt`` is asked for the password when sudo wants one.
    :raises Unreachable: what is missing there, and what to do.
    """
    process = await link.run(command("sudo -n -- " if sudo else ""))
    try:
        if not await _start(link, process, sudo):
            await trio.aclose_forcefully(process)
            process = await link.run(command(f"sudo -S -p {_SUDO_PROMPT} -- "))
            await _give_password(link, process, prompt)
            await _start(link, process, False)
        yield process
    finally:
        await trio.aclose_forcefully(process)


async def _start(link: Link, process: Process, sudo: bool) -> bool:
    """From the loader to the running agent. False when sudo wants a password first."""
    nonce = secrets.token_hex(16)
    noise = b""
    with trio.move_on_after(_PATIENCE):
        try:
            await process.send_all(first_stage(nonce))
        except trio.BrokenResourceError:
            pass  # it has ended already; why is said below
        while len(noise) < _NOISE:
            _, found, rest = noise.partition(nonce.encode())
            if found and b"\n" in rest:
                return await _answer(link, process, rest.split(b"\n")[0].decode("utf-8", "replace").split())
            try:
                data = await process.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                await process.wait_ended()
                words = process.last_words()
                if sudo and "password" in words:
                    return False
                raise Unreachable(_no_python(link, process, words, sudo))
            noise += data
        raise Unreachable(f"{link.destination}: its login shell prints too much: {noise[:200]!r}…")
    raise Unreachable(f"{link.destination}: python3 did not start within {_PATIENCE:.0f} s")


async def _answer(link: Link, process: Process, words: list[str]) -> bool:
    """What the first stage found."""
    if words[0] == "old":
        raise Unreachable(f"{link.destination} has Python {words[1]}; Python 3.9 or newer is needed there, as python3")
    if words[0] == "incomplete":
        raise Unreachable(
            f"{link.destination}: its Python {words[1]} lacks the module {words[2]} of the standard library;"
            " install all of python3 (on Debian, python3 and not python3-minimal)"
        )
    if words[0] == "need":
        await process.send_all(archive()[0])
    return True


def _no_python(link: Link, process: Process, words: str, sudo: bool) -> str:
    if "SyntaxError" in words:
        return f"{link.destination}: its python3 is older than 3.6; Python 3.9 or newer is needed there"
    if sudo and "sudo" in words:
        return f"{link.destination}: --sudo: {words}"
    if process.exit_status in (126, 127):
        return f"{link.destination}: no python3 there ({words}); Python 3.9 or newer is needed"
    return f"{link.destination}: the agent did not start: {words or 'no reason was given'}"


async def _give_password(link: Link, process: Process, prompt: Prompt | None) -> None:
    """Through sudo's questions, until the loader runs."""
    if prompt is None:
        raise Unreachable(
            f"{link.destination}: sudo wants a password and there is no terminal to ask for it;"
            " allow it without one (NOPASSWD in sudoers), or connect as root"
        )
    for _ in range(_ATTEMPTS):
        if not await _asked_before_ready(process):
            break
        password = await prompt(f"[sudo] password on {link.destination}: ")
        if password is None:
            raise Unreachable(f"{link.destination}: no password for sudo was given")
        await process.send_all(password.encode() + b"\n")
    else:
        if await _asked_before_ready(process):
            raise Unreachable(f"{link.destination}: sudo does not take the password")
    if process.exit_status is not None:
        raise Unreachable(f"{link.destination}: --sudo: {process.last_words()}")


async def _asked_before_ready(process: Process) -> bool:
    """Whether sudo asks for a password; False when the loader says that it runs, or when it has ended."""
    asked = False

    async def ask(scope: trio.CancelScope) -> None:
        nonlocal asked
        asked = await process.wait_stderr(_SUDO_PROMPT.encode())
        scope.cancel()

    async def ready(scope: trio.CancelScope) -> None:
        heard = b""
        while _READY not in heard and (data := await process.receive_some()):
            heard += data
        if _READY not in heard:
            await process.wait_ended()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, nursery.cancel_scope)
        nursery.start_soon(ready, nursery.cancel_scope)
    return asked

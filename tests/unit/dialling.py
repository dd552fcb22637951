"""Connections to a real sshd on a private port, made and used as a test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from migrate.errors import Unreachable
from migrate.transport.session import Process
from migrate.transport.ssh import Connection, Prompt, connect
from migrate.transport.target import Destination

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

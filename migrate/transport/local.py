"""An agent on this machine: a child process that has one end of a socket pair as its standard input and output."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import trio

from migrate.transport.agent import sole

_LAST_WORDS = 8 << 10  # bytes of standard error that are kept
_SOCKET_BUFFER = 4 << 20
_PATIENCE = 5.0  # seconds for an agent to end by itself once its input has ended


class LocalAgent(trio.abc.HalfCloseableStream):
    """The stream to a local agent process."""

    def __init__(self, stream: trio.SocketStream, process: trio.Process) -> None:
        self._stream, self.process = stream, process
        self._stderr = bytearray()
        self._said = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def wait_ended(self) -> None:
        """Until it has ended and everything that it said is here."""
        await self.process.wait()
        await self._said.wait()

    def last_words(self) -> str:
        """How it ended, and the end of what it wrote to its standard error."""
        status = self.process.poll()
        ending = "" if status is None else f"signal {-status}" if status < 0 else f"exit status {status}"
        return ", ".join(filter(None, (ending, _last_line(self._stderr))))

    async def end(self) -> None:
        """Closes its input, at which it puts right what it has touched and exits; kills it when it does not."""
        await trio.aclose_forcefully(self)
        with trio.move_on_after(_PATIENCE):
            await self.process.wait()
        if self.process.poll() is None:
            try:
                self.process.kill()
            except PermissionError:
                pass  # sudo's: it is not ours to kill, and ends with the agent
            await self.process.wait()

    async def _collect(self, until: trio.CancelScope) -> None:
        assert self.process.stderr is not None
        with until:
            async for data in self.process.stderr:
                self._stderr += data
                del self._stderr[:-_LAST_WORDS]
            self._said.set()


def _last_line(stderr: bytes | bytearray) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def argv(module: str, sudo: Sequence[str] = (), *arguments: str) -> list[str]:
    """The command line of an agent that runs from the sources that we run from. ``sudo``: words before it."""
    root = Path(__file__).resolve().parents[2]
    # Not -m: under sudo(8) neither the environment nor the working directory can be relied on to find the package.
    path = [str(root), *filter(None, sys.path)]
    program = f"import sys; sys.path[:0] = {path!r}; from {module} import main; sys.exit(main())"
    return [*sudo, sys.executable, "-c", program, *arguments]


@asynccontextmanager
async def start(command: Sequence[str], inherited: Sequence[int] = ()) -> AsyncIterator[LocalAgent]:
    """Starts an agent (see `argv`) and gives the stream to it. It has ended at the end of the block, in any case.
    ``inherited``: descriptors that it gets under the same numbers."""
    ours, theirs = socket.socketpair()
    with theirs:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=PIPE,
            # Ctrl-C at the terminal is for us, who tell the agent what to do.
            start_new_session=not _asks(command),
            pass_fds=inherited,
        )
    agent = LocalAgent(stream, process)
    collecting = trio.CancelScope(shield=True)  # to the end, also when the block is cancelled
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent._collect, collecting)
            try:
                yield agent
            finally:
                with trio.CancelScope(shield=True):
                    await agent.end()
                collecting.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
    finally:
        assert process.stderr is not None
        await trio.aclose_forcefully(process.stderr)


def _asks(command: Sequence[str]) -> bool:
    """Whether it may want to ask for a password, and so needs our terminal."""
    return os.path.basename(command[0]) == "sudo"

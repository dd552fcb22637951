"""Both agents and what goes between them: connections, the relay of page frames, and a watch over who is lost."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from migrate import faults
from migrate.askpass import prompt
from migrate.destination import Destination
from migrate.errors import Failed
from migrate.options import Connection, Options
from migrate.progress import Display
from migrate.rescue import Rescue
from migrate.source_agent import source_agent
from migrate.transport import frames, ssh
from migrate.transport.agent import Agent, open_agent, sole
from migrate.transport.bootstrap import Prompt, agent_session
from migrate.transport.frames import Buffer, Frame
from migrate.transport.ring import Ring
from migrate.transport.target import Destination as Target

_IN_FLIGHT = 0.5  # seconds for a page frame that is on its way when all is called off
_PING = 15.0  # seconds between two signs of life; the destination gives up after LEASE (agents/overseer.py)
_SLOT = struct.Struct("<II")  # slot, length: before the meta of a RING frame


class Relay:
    """Passes page frames from the source to the destination, and counts."""

    def __init__(self, display: Display, ring: Ring) -> None:
        self.destination: Agent | None = None
        self._ring = ring
        self.pages = self.bytes = 0
        self._off = False
        self._busy = trio.Lock()  # while a frame is on its way
        self._in_flight = trio.CancelScope()
        self._display = display
        self._since, self._before = time.monotonic(), 0
        self._rate = 0.0

    async def __call__(self, frame: Frame) -> None:
        """Waits until the destination's stream takes the frame, and so holds back the source."""
        meta, size = frame.meta, len(frame.blob)
        if frame.kind == frames.RING:
            slot, size = _SLOT.unpack_from(meta)
            meta = meta[_SLOT.size :]
            # The stream has copied what it could not send when this returns.
            await self._send(frame.slot, frame.flags, meta, self._ring.slot(slot, size))
            self._ring.free(slot)
        else:
            await self._send(frame.slot, frame.flags, meta, frame.blob)
        self.bytes += len(meta) + size
        self.pages += sum(run.pages for run in frames.parse_pages(meta)[1] if run.what == frames.CONTENTS)
        now = time.monotonic()
        if now - self._since > 0.1:
            self._rate = (self.bytes - self._before) / (now - self._since)
            self._since, self._before = now, self.bytes
            self._display.sent(self.bytes, self.pages, self._rate)

    async def _send(self, restoree: int, flags: int, meta: bytes, contents: Buffer) -> None:
        """Frames for a destination that is gone are dropped: who asks it next is told why."""
        assert self.destination is not None
        if self._off:
            return
        if faults.pretended("page"):
            contents = faults.damage(frames.parse_pages(meta)[1], contents)
        try:
            async with self._busy:
                with trio.CancelScope() as self._in_flight:
                    await self.destination.send_pages(restoree, flags, meta, contents)
        except Failed:
            self._off = True

    async def stop(self) -> None:
        """Drop what comes from now on: the source, which waits for us to take it, has to hear something else."""
        self._off = True
        with trio.move_on_after(_IN_FLIGHT):
            async with self._busy:
                return
        self._in_flight.cancel()


@asynccontextmanager
async def reached(connection: Connection, prompt: Prompt | None, display: Display) -> AsyncIterator[tuple[Agent, str]]:
    """An agent on the destination, and the destination's name for sentences."""
    target = Target(
        connection.dest, connection.port, connection.identities, connection.ssh_config, connection.jump
    )
    async with (
        ssh.connect(target, prompt) as link,
        agent_session(link, connection.sudo, prompt) as session,
        open_agent(session, f"the agent on {link.destination}") as agent,
    ):
        display.detail(f"connected to {link.destination} with {link.cipher}")
        yield agent, link.destination


@asynccontextmanager
async def connected(
    options: Options, display: Display, migration: str
) -> AsyncIterator[tuple[Rescue, Destination, Relay]]:
    """Both agents. The one here starts while the SSH connection is made. ``migration``: its id."""
    async with AsyncExitStack() as stack:
        ring = stack.enter_context(Ring.create())
        relay = Relay(display, ring)
        asking = prompt(display)
        # Who may not move it need not wait for the connection to be told.
        start = source_agent(options.pid, ring, relay, display, asking is not None, migration)
        source = await stack.enter_async_context(start)
        display.phase("connecting", options.dest)
        agent, name = await stack.enter_async_context(reached(options.connection, asking, display))
        relay.destination = agent
        await faults.reach("connected")
        rescue = Rescue(options.pid, source.agent, source.stream, ring, display, source.sudo)
        yield rescue, Destination(agent, name, options.pid), relay


@asynccontextmanager
async def watching(source: Agent, destination: Agent) -> AsyncIterator[None]:
    """Ends the block as soon as an agent is lost, whatever is being waited for, with the reason. What is lost when the
    block has come to its end does not matter any more."""
    lost: list[Exception] = []
    ended = False

    async def watch(agent: Agent, scope: trio.CancelScope) -> None:
        lost.append(await agent.wait_lost())
        scope.cancel()

    async def ping() -> None:
        try:
            while True:
                await trio.sleep(_PING)
                await destination.submit("ping")
        except Failed:
            return  # `watch` says so

    try:
        async with trio.open_nursery() as nursery:
            for agent in (source, destination):
                nursery.start_soon(watch, agent, nursery.cancel_scope)
            nursery.start_soon(ping)
            yield
            ended = True  # `watch` may have been told by now, and not have run yet
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
    if lost and not ended:
        raise lost[0]

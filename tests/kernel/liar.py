"""Migrations to a destination agent on this machine, whose answers are changed on their way by a test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from agents import journal
from migrate import faults
from migrate.arguments import parse
from migrate.coordinator import Migration
from migrate.destination import Destination
from migrate.links import Relay
from migrate.options import Options
from migrate.progress import Quiet
from migrate.rescue import Rescue
from migrate.source_agent import SourceAgent, source_agent
from migrate.transport import frames, local
from migrate.transport.agent import open_agent
from migrate.transport.frames import Frame
from migrate.transport.ring import Ring

ROOT = Path(__file__).parents[2]
NAME = "the liar"
Fields = dict[str, Any]
Lie = Callable[[str, Fields, bytes], "tuple[Fields, bytes] | bytes"]
"""Verb, fields and blob of an answer: what is said instead, as fields and blob or as the bytes of the stream."""


class Lying(trio.abc.HalfCloseableStream):
    """The stream to an agent, as far as the coordinator can see. ``answers``: verb and names of the fields of each."""

    def __init__(self, stream: local.LocalAgent, lie: Lie) -> None:
        self._stream, self._lie = stream, lie
        self._out, self._in = frames.Decoder(), frames.Decoder()
        self._verbs: dict[int, str] = {}
        self.answers: list[tuple[str, tuple[str, ...]]] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for frame in self._out.feed(bytes(data)):
            if frame.kind == frames.REQUEST:
                fields = frames.parse_json(frame.meta)
                self._verbs[fields["id"]] = fields["verb"]
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            data = await self._stream.receive_some(max_bytes)
            if not data:
                return data
            if said := b"".join(self._changed(frame) for frame in self._in.feed(data)):
                return said

    def _changed(self, frame: Frame) -> bytes:
        if frame.kind != frames.REPLY:
            return frames.encode(frame)
        fields, blob = frames.parse_json(frame.meta), bytes(frame.blob)
        verb = self._verbs[fields["id"]]
        self.answers.append((verb, tuple(fields)))
        said = self._lie(verb, fields, blob)
        if isinstance(said, bytes):
            return said
        return frames.encode(Frame(frames.REPLY, frames.json_meta(said[0]), said[1]))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Source:
    """A source agent that outlives migrations, so that a hundred of them do not take minutes."""

    def __init__(self, pid: int, agent: SourceAgent, ring: Ring, relay: Relay) -> None:
        self._pid, self._agent, self._ring, self._relay = pid, agent, ring, relay

    async def move(self, lie: Lie, fault: str, *options: str) -> Lying:
        """A migration. Raises what the coordinator does."""
        faults.arm(",".join(filter(None, [fault, "lease:is=0.5"])))  # one that was prepared and loses us ends soon
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from agents import destination;"
            " sys.exit(destination.main())"
        )
        display = Quiet()
        try:
            async with local.start([sys.executable, "-S", "-c", program]) as stream:
                lying = Lying(stream, lie)
                async with open_agent(lying, NAME) as agent:
                    self._relay.destination, self._relay._off = agent, False
                    rescue = Rescue(self._pid, self._agent.agent, self._agent.stream, self._ring, display)
                    fresh = replace(rescue, touched=False, halted=False, locks={})
                    where = Destination(agent, NAME, self._pid)
                    asked = parse(["--stdio", "null", "--reconnect-for", "1ms", *options, str(self._pid), "there"])
                    assert isinstance(asked, Options)
                    scope, id = trio.CancelScope(), journal.new_id()
                    await Migration(asked, display, fresh, where, self._relay, scope, id).run()
            return lying
        finally:
            faults.arm("")
            await self._agent.agent.request("inspect", pid=self._pid)  # lets go of its dirty-page tracker


@asynccontextmanager
async def source(pid: int) -> AsyncIterator[Source]:
    """An agent for the process."""
    async with AsyncExitStack() as stack:
        display = Quiet()
        ring = stack.enter_context(Ring.create())
        relay = Relay(display, ring)
        agent = await stack.enter_async_context(source_agent(pid, ring, relay, display, False, journal.new_id()))
        yield Source(pid, agent, ring, relay)

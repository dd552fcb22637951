"""The process is let go on the source, whatever has become of the agent that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from migrate.engine.image.codec import encode
from migrate.engine.kinds.locks import Held
from migrate.errors import Failed, Refused
from migrate.progress import Display
from migrate.transport import local
from migrate.transport.agent import Agent, AgentError, open_agent
from migrate.transport.ring import Ring

_RESUME = 4.0  # seconds for the agent to answer; it does in milliseconds, where it is not stuck
_CURE = 15.0  # seconds for a second agent


@dataclass
class Rescue:
    """What has been done to the process ``pid``, as far as the coordinator knows, and how to undo it."""

    pid: int
    source: Agent
    stream: local.LocalAgent
    ring: Ring
    display: Display
    sudo: tuple[str, ...] = ()  # by which the source agent was started
    touched: bool = False  # it has been stopped, if only for a moment
    halted: bool = False  # a SIGSTOP waits for it, or soon will
    stopped: frozenset[int] = frozenset()  # where several move: those that are stopped without that
    prepared: bool = False  # the destination has been told to prepare the commit
    people: list[list[int]] = field(default_factory=list)  # where several move: number and time of start of each
    locks: dict[int, Held] = field(default_factory=dict)  # that may have been released, by process

    async def let_go(self) -> bool:
        """It goes on as if nothing had happened. What goes wrong with that is said on the display, and then it is
        not known."""
        with trio.move_on_after(_RESUME):
            try:
                await self.source.request("resume")
                return True
            except AgentError as error:
                self.display.warn(str(error))
            except Failed:
                pass  # it is gone
        # At the end of its input it lets the process go. When it was killed, the kernel has, but what it had put into
        # the process is still there.
        await self._end_agent()
        return not self.touched or await self._cure()

    async def _end_agent(self) -> None:
        self.ring.hang_up()
        await self.stream.end()

    async def _cure(self) -> bool:
        cured = True
        for pid, start in reversed(self._all):
            held = self.locks.get(pid)
            try:
                with trio.fail_after(_CURE):
                    blob = encode(held) if held and held.locks else b""
                    await second_agent(self.sudo, "cure", blob, pid=pid, halted=self._halts(pid), start=start)
            except (Failed, Refused, trio.TooSlowError) as error:
                self.display.warn(f"something of ours may be left in process {pid}: {error or 'no answer in time'}")
                cured = False
        return cured

    def _halts(self, pid: int) -> bool:
        return self.halted and pid not in self.stopped

    @property
    def _all(self) -> list[tuple[int, int | None]]:
        return [(pid, start) for pid, start in self.people] or [(self.pid, None)]

    async def end(self) -> None:
        """It runs elsewhere: this copy ends, without having run again."""
        try:
            await self.source.request("kill")
        except Failed:
            await self._end_agent()
            for pid, start in self._all:
                await second_agent(self.sudo, "end", pid=pid, start=start)

    async def reap(self) -> None:
        """Wait until the copy that was ended is gone, and what it had by a name."""
        try:
            reply = await self.source.request("reap")
        except AgentError:
            raise
        except Failed:
            return  # the agent is gone: `end` has seen to it
        for each in reply["left"]:
            self.display.warn(each)


async def second_agent(sudo: Sequence[str], verb: str, blob: bytes = b"", **arguments: Any) -> None:
    """Ask another source agent, when the first one is no more: a process can have one tracer only. ``sudo``: the words
    by which to start it, if any."""
    async with (
        local.start(local.argv("agents.source", sudo)) as stream,
        open_agent(stream, "the second source agent", refuses=True) as agent,
    ):
        await agent.request(verb, blob, **arguments)

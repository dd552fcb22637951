"""Starts the source agent: as root by sudo(8) where the process is not ours to trace."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from migrate.engine.tracee.inspection import NoRights, why_not_traceable
from migrate.errors import Problem, Refused
from migrate.progress import Display
from migrate.transport import local
from migrate.transport.agent import Agent, ConnectionLost, PagesHandler, open_agent
from migrate.transport.ring import Ring


@dataclass(frozen=True)
class SourceAgent:
    """``sudo``: the words before the command line of an agent, if any."""

    agent: Agent
    stream: local.LocalAgent
    sudo: tuple[str, ...]


@asynccontextmanager
async def source_agent(
    pid: int, ring: Ring, on_pages: PagesHandler, display: Display, asks: bool, migration: str
) -> AsyncIterator[SourceAgent]:
    """The agent that may trace ``pid``. Refused where there is no such process, or no way to trace it.

    ``asks``: there is a terminal on which sudo can ask for a password. ``migration``: its id, for all to see who look
    who holds the process."""
    problems = why_not_traceable(pid)
    sudo = _words(problems, asks)
    async with AsyncExitStack() as stack:
        command = local.argv("agents.source", sudo, ring.argument, migration)
        stream = await stack.enter_async_context(local.start(command, ring.inherited))
        stack.callback(ring.hang_up)
        agent = await stack.enter_async_context(open_agent(stream, "the source agent", on_pages, refuses=True))
        if sudo:
            display.note(f"{problems[0].what}: the source agent runs as root, by sudo")
            display.suspend()  # it may be asking for a password
            try:
                await agent.request("stat", paths=[])
            except ConnectionLost:
                raise Refused([_unhelped(problem, stream.last_words()) for problem in problems]) from None
            finally:
                display.resume()
        yield SourceAgent(agent, stream, sudo)


def words_for(pid: int, asks: bool = False) -> tuple[str, ...]:
    """Before the command line of an agent that is to trace ``pid``: none, or sudo's. Refused as `source_agent` is."""
    return _words(why_not_traceable(pid), asks)


def _words(problems: list[Problem], asks: bool) -> tuple[str, ...]:
    if not problems:
        return ()
    if os.geteuid() == 0 or not all(isinstance(problem, NoRights) for problem in problems):
        raise Refused(problems)
    if not shutil.which("sudo"):
        raise Refused(problems)
    return ("sudo", "--") if asks else ("sudo", "-n", "--")


def _unhelped(problem: Problem, words: str) -> Problem:
    return Problem(problem.where, f"{problem.what}, and sudo did not help ({words})", problem.advice)

"""A destination agent on its own, with a restorer or with one that only pretends, and what a test asks of it."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from migrate.transport import local
from migrate.transport.agent import Agent, open_agent
from tests.tasks import children

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_restorer.py")
ID = "261121100343-51d09f3a2c1b"
Test = Callable[["Side"], Awaitable[None]]


class Side:
    """An agent under test."""

    def __init__(self, agent: Agent, stream: local.LocalAgent, events: list[dict[str, Any]]) -> None:
        self.agent, self.stream, self.events = agent, stream, events


@asynccontextmanager
async def side(overseer: list[str], before: str = "pass") -> AsyncIterator[Side]:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from agents import conversation, destination, overseer;"
        f" {before}; sys.exit(destination.main({overseer!r}))"
    )
    events: list[dict[str, Any]] = []
    async with local.start([sys.executable, "-c", program]) as stream:
        async with open_agent(stream, "the destination", on_event=events.append) as agent:
            yield Side(agent, stream, events)


def with_agent(test: Test, overseer: list[str] | None = None, before: str = "pass") -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with side(overseer or [], before) as subject:
                await test(subject)

    trio.run(main)


def fake(pages: Path) -> list[str]:
    return [sys.executable, "-S", str(FAKE), str(pages)]


async def prepare(subject: Side, program: bytes, release: bytes, revocable: int = 1) -> int:
    """A program for the overseer, and the one of the commit. Returns the overseer's number."""
    (child,) = children(subject.stream.process.pid)
    about = {"release": len(release), "revocable": revocable, "restoree": child}
    await subject.agent.request("stage", program + release, **about)
    assert (await subject.agent.request("prepare", parts=[[0, len(program)]]))["failed"] == -1
    return child


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.005)

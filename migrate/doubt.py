"""COMMIT was sent and no answer came: the destination is asked until it tells what became of the process."""

from __future__ import annotations

import time
from dataclasses import dataclass

import trio

from agents import settling
from migrate.askpass import prompt
from migrate.errors import Failed, MigrateError, Refused
from migrate.links import reached
from migrate.options import Connection
from migrate.progress import Display

_FIRST, _LONGEST = 0.25, 4.0  # seconds between two tries, doubled each time
_CONNECT = 10.0  # seconds for a try to get there: one that was begun while the link was down hangs for long
_ANSWER = 40.0  # seconds for the agent there; it waits itself for processes that were killed to be gone
_LAST = 2.0  # seconds that the last try gets in any case


@dataclass(frozen=True)
class Outcome:
    """``what``: one of agents/settling.py. ``pid``: its number on the destination, where that is known. ``final``:
    asking again is of no use."""

    what: str
    why: str = ""
    pid: int | None = None
    final: bool = False


async def ask(connection: Connection, display: Display, id: str, how: str) -> Outcome:
    """Go there and ask what became of it, or (COMMIT, ABORT) settle it. Raises a MigrateError when it cannot be
    asked."""
    with trio.CancelScope() as patience:
        patience.deadline = trio.current_time() + _CONNECT
        async with reached(connection, prompt(display), display) as (agent, _):
            patience.deadline = trio.current_time() + _ANSWER
            reply = await agent.request("settle", migration=id, how=how)
        try:
            pid = reply.meta.get("pid")
            final = reply["outcome"] in (settling.MOVED, settling.ROLLED_BACK) or bool(reply.meta.get("final"))
            return Outcome(str(reply["outcome"]), str(reply["why"]), int(pid) if pid else None, final)
        except (KeyError, TypeError, ValueError) as error:
            raise Failed(f"the answer makes no sense: {error!r:.200}") from error
    raise Failed("no answer in time")


async def ask_again(connection: Connection, display: Display, id: str, how: str, seconds: float) -> Outcome:
    """With back-off, until it is settled or the time is up: then the last answer, or UNKNOWN and why nobody could be
    asked."""
    end, pause = time.monotonic() + seconds, _FIRST
    last = Outcome(settling.UNKNOWN)
    while True:
        with trio.move_on_after(max(_LAST, end - time.monotonic())) as patience:
            try:
                last = await ask(connection, display, id, how)
            except Refused:
                raise
            except MigrateError as error:
                last = Outcome(settling.UNKNOWN, str(error))
        if patience.cancelled_caught:
            last = Outcome(settling.UNKNOWN, "no answer in time")
        if last.final or time.monotonic() + pause > end:
            return last
        display.detail(f"{connection.dest}: {last.why or last.what}; asking again in {pause:g} s")
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST)

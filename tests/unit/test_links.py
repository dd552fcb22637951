"""An agent that is lost ends what is done with it, but not what has been done."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from migrate.errors import Failed
from migrate.links import watching
from migrate.transport.agent import Agent


class Lost:
    """Stands in for an agent."""

    def __init__(self) -> None:
        self.lost = trio.Event()

    async def wait_lost(self) -> Failed:
        await self.lost.wait()
        return Failed("it is gone")


def watched(last_words: bool) -> bool:
    """Whether the block came to its end. ``last_words``: it waits for something after the loss."""
    came = False

    async def main() -> None:
        nonlocal came
        one, other = Lost(), Lost()
        async with watching(cast(Agent, one), cast(Agent, other)):
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope(shield=True):
                other.lost.set()
                if last_words:
                    await trio.testing.wait_all_tasks_blocked()
            if last_words:
                await trio.sleep_forever()
            came = True

    trio.run(main)
    return came


def test_what_is_at_work_ends() -> None:
    with pytest.raises(Failed, match="it is gone"):
        watched(last_words=True)


def test_what_has_come_to_its_end_has() -> None:
    """At the same moment: the process has moved, and nothing may be rolled back."""
    assert watched(last_words=False)

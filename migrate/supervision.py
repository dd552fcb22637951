"""Runs what a command does until it ends or a signal says stop, and tells which of several errors is to blame."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from migrate.errors import InDoubt, Interrupted, MigrateError
from migrate.progress import Display

if TYPE_CHECKING:
    import trio

J = TypeVar("J")  # what was asked for
R = TypeVar("R")  # what came of it


async def supervise(options: J, display: Display, move: Callable[[J, Display], Awaitable[R]]) -> R:
    """Run ``move`` until it ends or a signal cancels it. After the commit it may shield itself: then it has moved."""
    import trio

    outcome: R | Exception = Interrupted()
    with trio.open_signal_receiver(*_signals()) as received:
        async with trio.open_nursery() as background:
            with trio.CancelScope() as scope:
                background.start_soon(_cancel_on_signal, received, scope, display)
                background.start_soon(_tick, display)
                try:
                    outcome = await move(options, display)
                except Exception as error:
                    outcome = error
            background.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _signals() -> Iterator[signal.Signals]:
    """Those that mean "stop"; but not one that we were told to ignore, as nohup and a shell's & do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            yield number


async def _cancel_on_signal(received: AsyncIterator[int], scope: trio.CancelScope, display: Display) -> None:
    async for _number in received:
        if not scope.cancel_called:
            display.resume()  # were it suspended, the user would think that nothing happens
            if display.committing:
                display.note(f"interrupted, but {display.decided}: it is too late to roll back")
            else:
                display.phase("rolling back", "interrupted")
            scope.cancel()
        elif not display.committing:
            display.note("still rolling back; the process stays here")


async def _tick(display: Display) -> None:
    import trio

    while True:
        await trio.sleep(0.1)
        display.tick()


def blame(error: BaseException) -> BaseException:
    """The one error to tell of. A group (of tasks that failed together) is as bad as the worst in it: doubt about the
    commit before all else, then a bug of ours, then the first that has a sentence to say."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    return min((blame(inner) for inner in error.exceptions), key=_rank)


def _rank(error: BaseException) -> int:
    if isinstance(error, InDoubt):
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 3
    return 2 if isinstance(error, MigrateError) else 1

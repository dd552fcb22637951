"""What is done to one stopped process, written down for itself, and done to many at once.

A procedure that sends threads on detours (`travel`) is a generator: it yields the trips, and is told what they brought.
Done to many processes in step, the trips of all are one journey: none of them waits for another one's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from migrate.engine.tracee.detour import Trip, travel
from migrate.errors import Refused

Done = TypeVar("Done")


@dataclass(frozen=True)
class Leg:
    """Trips of the threads of one process. ``timeout``: seconds; ``meanwhile``: what to do ourselves while they are
    away, which takes none of it."""

    trips: Sequence[Trip]
    timeout: float
    meanwhile: Callable[[], None] | None = None


Steps = Generator[Leg, dict[int, int], Done]
"""Yields a `Leg`, is sent what each thread left in r12 (`travel`), or what `travel` raised; returns what it is for."""


def alone(steps: Steps[Done]) -> Done:
    """Do this to one process."""
    (done,) = in_step([steps])
    if isinstance(done, Refused):
        raise done
    return done


def in_step(procedures: Iterable[Steps[Done]]) -> list[Done | Refused]:
    """Do these at once, each to another process. What one of them is refused for does not stop the others; any other
    error does, and all of them are told."""
    waiting = dict(enumerate(procedures))
    done: dict[int, Done | Refused] = {}
    legs: dict[int, Leg] = {}

    def go_on(position: int, step: Callable[[], Leg]) -> None:
        try:
            legs[position] = step()
        except StopIteration as end:
            done[position] = end.value
        except Refused as refusal:
            done[position] = refusal
        else:
            return
        del waiting[position]

    try:
        for position, steps in list(waiting.items()):
            go_on(position, partial(next, steps))
        while waiting:
            taken, legs = legs, {}
            results = _travel(list(taken.values()))
            for position, steps in list(waiting.items()):
                own = {trip.traveller.tid: results[trip.traveller.tid] for trip in taken[position].trips}
                go_on(position, partial(steps.send, own))
    except BaseException as error:
        with ExitStack() as each:
            for steps in waiting.values():
                each.callback(_tell, steps, error)
        raise
    return [done[position] for position in sorted(done)]


def _tell(steps: Steps[Done], error: BaseException) -> None:
    """It cleans up after itself."""
    try:
        steps.throw(error)
    except BaseException as raised:
        if raised is not error:
            raise


def _travel(legs: Sequence[Leg]) -> dict[int, int]:
    def meanwhile() -> None:
        for leg in legs:
            if leg.meanwhile is not None:
                leg.meanwhile()

    trips = [trip for leg in legs for trip in leg.trips]
    return travel(trips, max(leg.timeout for leg in legs), meanwhile)

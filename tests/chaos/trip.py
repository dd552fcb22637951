"""One move with its disasters: started, struck, waited for, and settled by `migrate recover` where it has to be."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agents import settling
from tests.chaos.catalogue import DISASTERS, NotThere, Scene, TooLate
from tests.chaos.plan import Blow, Plan
from tests.migration.launcher import Launcher, Result, Run
from tests.tasks import PATIENCE

LEASE = 5.0  # seconds that a destination waits for a word
OPTIONS = ("--max-downtime", "1ms", "--no-converge", "continue", "--reconnect-for", "2s")
HANGS = 100.0  # seconds after which a command that has not ended never will
AWAY = 12.0  # seconds that the hosts cannot hear each other at most
_NAP = 0.002
_SETTLES = 40.0  # seconds for `migrate recover`, called again and again
KILLED, IN_DOUBT = -9, 6


class Broken(AssertionError):
    """What must hold does not."""


@dataclass
class _Pending:
    """A blow that is to come, and what has become of it."""

    blow: Blow
    hold: Path | None
    due: float = math.inf
    struck: float = 0.0
    undo: list[Callable[[], None]] = field(default_factory=list)
    over: bool = False

    def release(self) -> None:
        """The point is left."""
        if self.hold is not None:
            self.hold.unlink(missing_ok=True)


@dataclass
class Told:
    """How the command ended, what hit it, what `migrate recover` said, and whether that was killed too."""

    result: Result
    struck: list[str]
    recovered: list[Result] = field(default_factory=list)

    @property
    def undecidable(self) -> bool:
        """The overseer was killed at the one system call of which nobody can tell whether it was made."""
        return any("at the very moment of letting it go" in each.out for each in self.recovered)


def strike(run: Run, plan: Plan, pending: list[_Pending], make: Callable[[], Scene], usual: float) -> list[str]:
    """Everything that the plan has, until the command has ended; undone in the end. What has hit."""
    begun = time.monotonic()
    for each in pending:
        if each.hold is None:
            each.due = begun + each.blow.share * usual
    while not run.ended:
        now = time.monotonic()
        if now > begun + HANGS * PATIENCE:
            raise Broken(f"the command has not ended after {HANGS:g} s")
        for each in pending:
            _advance(each, now, make)
        due = min((each.due for each in pending if not each.struck and not each.over), default=math.inf)
        time.sleep(max(0.0, min(_NAP, due - time.monotonic())))
    for each in pending:
        _undo(each)
        each.release()
    return [each.blow.kind for each in pending if each.struck]


def _advance(each: _Pending, now: float, make: Callable[[], Scene]) -> None:
    if each.over:
        return
    if each.struck:
        if now > each.struck + min(each.blow.lasts, AWAY):
            _undo(each)
        return
    if each.hold is not None and each.due == math.inf and each.hold.exists():
        each.due = now + each.blow.delay
        if each.blow.delay:
            each.release()
    if now < each.due:
        return
    scene = make()
    scene.undo = each.undo
    try:
        DISASTERS[each.blow.kind](scene, each.blow)
    except NotThere:
        if each.hold is not None:
            each.release()
        each.due = now + _NAP
        return
    except TooLate:
        each.over = True
        return
    finally:
        if each.undo:
            each.struck = now
    each.struck = time.monotonic()
    each.release()


def _undo(each: _Pending) -> None:
    while each.undo:
        each.undo.pop()()
    each.over = True


def take(
    launcher: Launcher, directory: Path, argv: tuple[str, ...], plan: Plan, make: Callable[[Run], Scene], usual: float
) -> Told:
    """The whole of it. ``argv``: the process and its destination; ``usual``: seconds that a move takes."""
    pending = []
    for number, blow in enumerate(plan.blows):
        hold = directory / f"hold-{number}" if blow.point else None
        pending.append(_Pending(blow, hold))
    faults = {each.blow.point: f"{each.blow.point}:hold={each.hold}" for each in pending if each.hold is not None}
    for each in pending:  # two at one point come together
        if each.hold is not None and not faults[each.blow.point].endswith(str(each.hold)):
            each.hold = next(other.hold for other in pending if other.blow.point == each.blow.point and other.hold
                             and faults[each.blow.point].endswith(str(other.hold)))  # fmt: skip
    fault = ",".join([*faults.values(), f"lease:is={LEASE}", f"padding:is={plan.padding}"])
    options = [*OPTIONS, *(["--verify"] if plan.verify else [])]
    run = launcher.start("--json", *options, *argv, fault=fault)
    struck = strike(run, plan, pending, lambda: make(run), usual)
    told = Told(run.wait(), struck)
    if told.result.code in (KILLED, IN_DOUBT) or _open(launcher):
        _recover(launcher, plan, told)
    return told


def status(launcher: Launcher) -> list[dict[str, object]]:
    """What the journals of a host tell."""
    result = launcher.start("--json", "status").wait()
    if result.code != 0:
        raise Broken(f"migrate status: {result}")
    return list(json.loads(result.out))


def _open(launcher: Launcher) -> bool:
    """Whether there is something to be settled here, though the command ended well: its journal could not be
    written."""
    return any(each["outcome"] in (settling.IN_DOUBT, settling.BROKEN_OFF) for each in status(launcher))


def _recover(launcher: Launcher, plan: Plan, told: Told) -> None:
    """As often as it takes."""
    end = time.monotonic() + _SETTLES * PATIENCE
    first = plan.again
    while True:
        run = launcher.start("--json", "recover")
        if first is not None:
            until, first = time.monotonic() + first, None
            while not run.ended and time.monotonic() < until:
                time.sleep(_NAP)
            run.signal(9)
        result = run.wait()
        told.recovered.append(result)
        if result.code == 0:
            return
        if told.undecidable:
            id = json.loads(result.out)[0]["id"]
            forced = launcher.start("--json", "recover", id, "--abort").wait()
            if forced.code != 0:
                raise Broken(f"migrate recover --abort: {forced}")
            return
        if time.monotonic() > end:
            raise Broken(f"migrate recover does not settle it: {result}")
        time.sleep(0.1)

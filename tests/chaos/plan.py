"""What is to go wrong with one move, and when: drawn from a seed, so that it can be drawn again."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

WEIGHTS = {
    "coordinator": 10,
    "source agent": 10,
    "destination agent": 10,
    "overseer": 10,
    "restoree": 10,
    "sshd session": 10,
    "sshd": 4,
    "link down": 9,
    "throttled to nothing": 7,
    "disk full": 6,
    "journal's disk full": 9,
    "journal's disk full here": 7,
    "no memory": 8,
    "no PIDs": 7,
    "no descriptors": 7,
}
"""Kinds of disasters, and how often each comes."""
LASTING = frozenset(list(WEIGHTS)[list(WEIGHTS).index("link down") :])
"""Those that are undone after a while; the others are the death of somebody."""
CUTS = frozenset(("link down", "throttled to nothing"))

POINTS = (
    *("intent", "frozen", "sent", "restored", "before-commit", "source-halted", "halted", "there-prepared"),
    *("commit-sent", "there-commit", "there-released", "acknowledged", "source-killed", "ended", "done"),
)
"""Of migrate.faults: the window of the commit."""
_PRECISE = 0.45  # of them come at a point, the others at any time
_TWO = 0.2  # of the moves have two
_NONE = 0.03  # and some none
_LONG = 0.15  # of those that last: until the command has given up
_LONG_ROOM = 0.5  # of those of them that cost no time: what is used up stays used up
_SHORT = (0.02, 1.2)  # seconds, of the others
_AGAIN = 0.15  # of `migrate recover` are killed, too
_VERIFIED = 0.3  # of the moves compare every page


@dataclass(frozen=True)
class Blow:
    """One disaster. ``point``: where the migration is held for it, or nothing; ``share``: of the time that a move
    takes, where there is no point; ``delay``: seconds after the point was left, 0 for while it is held; ``lasts``:
    seconds; ``luck``: a number from 0 to 1 for what else has to be drawn."""

    kind: str
    point: str
    share: float
    delay: float
    lasts: float
    luck: float

    def __str__(self) -> str:
        when = f"{self.delay * 1000:.1f} ms after {self.point}" if self.point else f"at {self.share:.2f}"
        lasts = "" if self.kind not in LASTING else f" for {self.lasts:.2f} s"
        return f"{self.kind} {when}{lasts}"


@dataclass(frozen=True)
class Plan:
    """Of one move. ``name`` draws it again; ``again``: after how many seconds the first `migrate recover` is killed, if
    one is needed; ``padding``: bytes by which journals begin longer, so that a disk can be full at any record."""

    name: str
    blows: tuple[Blow, ...]
    again: float | None
    verify: bool
    padding: int

    def __str__(self) -> str:
        return f"{self.name}: {' and '.join(map(str, self.blows)) or 'nothing'}"

    @property
    def kind(self) -> str:
        """For the table: of the first one."""
        return self.blows[0].kind if self.blows else "nothing"

    @property
    def cuts(self) -> bool:
        """Whether the hosts cannot hear each other for a while: what comes of it ends by timeouts."""
        return any(blow.kind in CUTS for blow in self.blows)


def draw(name: str, kinds: tuple[str, ...] = tuple(WEIGHTS)) -> Plan:
    """The plan of that name, ``SEED/LANE/NUMBER``. ``kinds``: those that can be had here."""
    chance = random.Random(name)
    share = chance.random()
    count = 0 if share < _NONE else 2 if share < _NONE + _TWO else 1
    blows = tuple(_blow(chance, kinds) for _ in range(count))
    again = chance.random() * 0.4 if chance.random() < _AGAIN else None
    return Plan(name, blows, again, chance.random() < _VERIFIED, chance.randrange(3150, 3850))


def _blow(chance: random.Random, kinds: tuple[str, ...]) -> Blow:
    kind = chance.choices(kinds, [WEIGHTS[each] for each in kinds])[0]
    point = chance.choice(POINTS) if chance.random() < _PRECISE else ""
    delay = chance.choice((0.0, chance.random() * 0.004))
    long = _LONG if kind in CUTS else _LONG_ROOM
    lasts = math.inf if chance.random() < long else chance.uniform(*_SHORT)
    return Blow(kind, point, chance.random() * 1.05, delay, lasts, chance.random())

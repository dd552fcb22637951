"""The table of what was done and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.lane import OUTCOMES
from tests.chaos.plan import WEIGHTS

BROKEN = "BROKEN"
NOTHING = "(missed, or none)"


@dataclass
class Tally:
    """Moves by kind of disaster and outcome. A move with two counts for both, and once in the last row."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)

    def add(self, kinds: list[str], outcome: str) -> None:
        """One move."""
        self.moves[outcome] += 1
        for kind in set(kinds) or {NOTHING}:
            self.counts[kind, outcome] += 1

    @property
    def total(self) -> int:
        return sum(self.moves.values())

    @property
    def hit(self) -> int:
        """Moves to which something was done; now and then a disaster comes too late, or nothing was to be done."""
        return self.total - sum(count for (kind, _), count in self.counts.items() if kind == NOTHING)

    @property
    def broken(self) -> int:
        return self.moves[BROKEN]

    def progress(self) -> str:
        """In a line."""
        return ", ".join([f"{self.hit} moves hit", *(f"{count} {outcome}" for outcome, count in self.moves.items())])

    def lines(self) -> Iterator[str]:
        """The table."""
        always = (*OUTCOMES[:2], BROKEN)
        columns = [outcome for outcome in (*OUTCOMES, BROKEN) if self.moves[outcome] or outcome in always]
        rows = [["fault", "times", *columns]]
        for kind in (*WEIGHTS, NOTHING):
            found = [self.counts[kind, outcome] for outcome in columns]
            if any(found):
                rows.append([kind, *map(str, (sum(found), *found))])
        rows.append(["moves", *map(str, (self.total, *(self.moves[outcome] for outcome in columns)))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join([row[0].ljust(len(first)), *rest])

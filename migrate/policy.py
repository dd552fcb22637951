"""When to stop pre-copying, as QEMU decides it (migration/migration.c, migration_iteration_run): when what is left, at
the measured bandwidth, fits the downtime budget.

Two things differ from QEMU. A budget that is met is no reason to use it up: as long as a further round is expected to
make the frozen time noticeably shorter, there is one (a gigabyte dirtied at 100 MB/s fits 300 ms after the first
round, and needs 5 ms after three). And a process that dirties its memory as fast as it travels would go on for ever,
so rounds that stop shrinking are noticed, and what happens then is the user's choice.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from migrate.report import Round
from migrate.wording import count, seconds

_SAMPLE = 4096  # pages: a rate measured over fewer than this says more about the round trip than about the bandwidth


class Decision(enum.Enum):
    """What to do after a round."""

    CONTINUE = "continue"
    FREEZE = "freeze"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Verdict:
    """A decision and, in words, why."""

    decision: Decision
    reason: str
    expected_downtime: float  # seconds, if it were frozen now


@dataclass(frozen=True)
class Limits:
    """What the user allows. Times in seconds."""

    max_downtime: float = 0.3
    max_rounds: int = 30
    no_converge: Literal["stop", "continue"] = "stop"
    fixed_downtime: float = 0.005  # of a freeze with no page left to send
    min_rounds: int = 2  # the second one is the rehearsal's: it finds every path warm
    worthwhile: float = 0.001  # a further round must be expected to save this much of the downtime
    shrinking: float = 0.9  # a round shrinks if it leaves less than this share of the least seen so far
    patience: int = 3  # rounds in a row that do not shrink


@dataclass
class PrecopyPolicy:
    """Is told of each round as it ends, and says what comes next."""

    limits: Limits
    _rounds: list[Round] = field(default_factory=list)
    _sending: list[float] = field(default_factory=list)  # seconds of each round
    _least: int | None = None  # dirty pages after the best round so far
    _stalled: int = 0  # rounds since then
    _passed_up: bool = False  # the budget was met once, and we went on for a shorter time still

    def after(self, round: Round, sending: float | None = None) -> Verdict:
        """The verdict after ``round``. Its ``seconds`` are those in which the process could dirty pages; ``sending``:
        those of them in which pages were sent."""
        self._rounds.append(round)
        self._sending.append(round.seconds if sending is None else sending)
        self._note_progress(round.dirty_pages_after)
        expected = self.expected_downtime()
        if expected <= self.limits.max_downtime:
            return self._within_budget(round, expected)
        return self._over_budget(expected)

    def expected_downtime(self) -> float:
        """Seconds, were the process frozen now."""
        rate, dirty = self._pages_per_second(), self._rounds[-1].dirty_pages_after
        return self.limits.fixed_downtime + (dirty / rate if dirty else 0.0)

    def _within_budget(self, round: Round, expected: float) -> Verdict:
        number, limits = len(self._rounds), self.limits
        saving = (round.dirty_pages_after - self._next_dirty(round)) / self._pages_per_second()
        if number >= limits.max_rounds:
            return Verdict(Decision.FREEZE, f"{count(number, 'round')} done, {_budget(expected, limits)}", expected)
        if number < limits.min_rounds:
            return Verdict(Decision.CONTINUE, "one more round, to rehearse", expected)
        if self._passed_up and self._stalled:
            return Verdict(Decision.FREEZE, f"it does not get better: {_budget(expected, limits)}", expected)
        if saving < limits.worthwhile:
            return Verdict(Decision.FREEZE, f"another round would save nothing: {_budget(expected, limits)}", expected)
        self._passed_up = True
        return Verdict(Decision.CONTINUE, f"another round should save {seconds(saving)} of the downtime", expected)

    def _over_budget(self, expected: float) -> Verdict:
        number, limits = len(self._rounds), self.limits
        if number >= limits.max_rounds:
            why = f"{count(number, 'round')} were not enough"
        elif self._stalled >= limits.patience:
            why = f"the last {count(self._stalled, 'round')} did not shrink"
        else:
            return Verdict(Decision.CONTINUE, f"stopping it now would take {seconds(expected)}", expected)
        why += f": it would be down for {seconds(expected)}, {seconds(limits.max_downtime)} are allowed"
        return Verdict(Decision.FREEZE if limits.no_converge == "continue" else Decision.GIVE_UP, why, expected)

    def _note_progress(self, dirty: int) -> None:
        if self._least is None or dirty < self.limits.shrinking * self._least:
            self._least, self._stalled = dirty, 0
        else:
            self._stalled += 1

    def _pages_per_second(self) -> float:
        """Over the latest rounds that together make a fair sample. Where there is none, as with many small processes
        that have most of their memory from one another, all that a round is besides sending would hide the rate."""
        pages, time, sending = 0, 0.0, 0.0
        for round, sent in zip(reversed(self._rounds), reversed(self._sending), strict=True):
            pages += round.pages
            time += round.seconds
            sending += sent
            if pages >= _SAMPLE:
                break
        return max(pages, 1) / max(time if pages >= _SAMPLE else sending, 1e-6)

    def _next_dirty(self, round: Round) -> float:
        """Pages that one more round would leave, if it goes on dirtying them as it did. A promise rather than a
        forecast: a round has costs of its own (the scan, the round trip), which show when rounds stop shrinking."""
        return round.dirty_pages_after / max(round.seconds, 1e-6) * round.dirty_pages_after / self._pages_per_second()


def _budget(expected: float, limits: Limits) -> str:
    return f"down for about {seconds(expected)} of the {seconds(limits.max_downtime)} allowed"

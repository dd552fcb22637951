"""What the destination has of the memory, and what it needs next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from migrate.engine.memory.area import Area, Content, of
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.tracker import Scan


class Erase(IntEnum):
    """How the restorer makes pages go away; the flags of a page run."""

    DROP = 1  # madvise(MADV_DONTNEED): private memory; zero, or the file's page, from then on
    PUNCH = 2  # madvise(MADV_REMOVE): shared memory; out of the object


class Run(NamedTuple):
    address: int
    pages: int


@dataclass
class Plan:
    """One round."""

    send: list[Run] = field(default_factory=list)
    forced: list[Run] = field(default_factory=list)  # to send as well, from VMAs that the task itself cannot read
    drop: list[Run] = field(default_factory=list)
    punch: list[Run] = field(default_factory=list)
    pages: int = 0  # to send


class RoundPlanner:
    """Keeps the account: `plan` for each scan, `sent` and `blank` from the pump for what came of it.

    ``have``: pages that the destination holds as they were when they were last read, or of which it holds nothing
    because they were zero (``blanks``, a part of ``have``).
    """

    def __init__(self) -> None:
        self.have = PageSet()
        self.blanks = PageSet()

    def plan(self, scan: Scan, areas: Sequence[Area]) -> Plan:
        """What must travel so that the destination equals what the scan saw.

        Pages outside of the areas are forgotten: their VMAs are gone, and with them the destination's, whose layout
        follows the source's. Call `remapped` for what the destination maps anew at an address where it had something.
        """
        here = [(area.start, area.end) for area in areas if area.content is not Content.NOTHING]
        self.have = self.have.clip(here)
        self.blanks = self.blanks.clip(here)
        wanted = (scan.populated - (self.have - scan.written)).clip(here)
        gone = self.have - scan.populated
        found = Plan(pages=len(wanted))
        if gone:
            self.have = self.have - gone
            erase = gone - self.blanks
            self.blanks = self.blanks - gone
            shared = erase.clip(of(Content.SHARED, areas))
            found.punch = [Run(*run) for run in shared.runs()]
            found.drop = [Run(*run) for run in (erase - shared).runs()]
        hidden = [(a.start, a.end) for a in areas if not a.readable and a.content is not Content.NOTHING]
        if hidden and (forced := wanted.clip(hidden)):
            found.forced = [Run(*run) for run in forced.runs()]
            wanted = wanted - forced
        found.send = [Run(*run) for run in wanted.runs()]
        return found

    def remapped(self, start: int, end: int) -> None:
        """The destination maps this range anew, so that it has nothing there."""
        self.have.discard(start, end)
        self.blanks.discard(start, end)

    def sent(self, address: int, pages: int) -> None:
        """Contents of these pages are on their way."""
        self.have.add(address, address + pages * PAGE)
        if self.blanks:
            self.blanks.discard(address, address + pages * PAGE)

    def blank(self, address: int) -> bool:
        """This page was found to be zero and nothing else lies under it. True: the destination has to erase what it
        holds."""
        held = address in self.have and address not in self.blanks
        self.have.add(address, address + PAGE)
        self.blanks.add(address, address + PAGE)
        return held

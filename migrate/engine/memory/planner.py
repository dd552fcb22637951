"""What the destination has of the memory, and what it needs next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from migrate.engine.memory.area import Area, Content, merged, of
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

    ``held``: pages whose contents the destination has. ``owed``: pages that may differ from what it has, and have not
    been sent yet. A page in neither is untouched on both sides, or zero.
    """

    def __init__(self) -> None:
        self.held = PageSet()
        self.owed = PageSet()

    @property
    def known(self) -> PageSet:
        """What a scan is to tell of when it is gone: what is owed as well. A page that is not there any more is owed no
        longer, and must not be taken for one of what is mapped in its place."""
        return self.held | self.owed if self.owed else self.held

    def plan(self, scan: Scan, areas: Sequence[Area]) -> Plan:
        """What must travel so that the destination equals what the scan saw.

        Pages outside of the areas are forgotten: their VMAs are gone, and with them the destination's, whose layout
        follows the source's. Call `remapped` for what the destination maps anew at an address where it had something.
        """
        here = merged((area.start, area.end) for area in areas if area.content is not Content.NOTHING)
        self.held = self.held.clip(here)
        # Not clipped: the scan may have seen, and protected, pages of VMAs that we are told of only the next time.
        self.owed |= scan.written
        if scan.gone:
            self.owed = self.owed - scan.gone
        found = Plan()
        if scan.gone and (erase := self.held & scan.gone):
            self.held = self.held - erase
            shared = erase.clip(of(Content.SHARED, areas))
            found.punch = [Run(*run) for run in shared.runs()]
            found.drop = [Run(*run) for run in (erase - shared).runs()]
        wanted = self.owed.clip(here)
        found.pages = len(wanted)
        hidden = [(a.start, a.end) for a in areas if not a.readable and a.content is not Content.NOTHING]
        if hidden and (forced := wanted.clip(hidden)):
            found.forced = [Run(*run) for run in forced.runs()]
            wanted = wanted - forced
        found.send = [Run(*run) for run in wanted.runs()]
        return found

    def remapped(self, start: int, end: int) -> None:
        """The destination maps this range anew, so that it has nothing there. Call it before `plan`."""
        self.owed |= self.held.clip([(start, end)])
        self.held.discard(start, end)

    def sent(self, runs: Iterable[tuple[int, int]]) -> None:
        """Contents of these (address, pages) are on their way."""
        done = PageSet((address, address + pages * PAGE) for address, pages in runs)
        self.held |= done
        self.owed = self.owed - done

    def blank(self, address: int) -> bool:
        """This page was found to be zero, in memory that is zero where nothing is. True: the destination has to erase
        what it holds."""
        had = address in self.held
        if had:
            self.held.discard(address, address + PAGE)
        self.owed.discard(address, address + PAGE)
        return had

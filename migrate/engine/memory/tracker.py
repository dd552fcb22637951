"""What every tracker of dirty pages does; the trackers are in files of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from migrate.engine.memory.area import Area
from migrate.engine.memory.pageset import PageSet


@dataclass
class Scan:
    """What a look at the memory found. Pages outside of the areas may be in it: memory that was mapped meanwhile."""

    written: PageSet = field(default_factory=PageSet)  # may have changed since the last protecting scan
    gone: PageSet = field(default_factory=PageSet)  # held, and not there any more


class Tracker(ABC):
    """Finds out which pages a task has written to, from outside and while it runs.

    ``written`` may be too large, never too small: a page is in it if it was written to since the last scan with
    ``protect``, if it is seen for the first time, or if the tracker cannot know (its VMA is new, was moved, or was
    mapped anew).

    Not seen by any of them: a device or another process that writes into a page that it has pinned before the scan
    and goes on after it (a read with O_DIRECT in flight). Nothing of that kind lives through a freeze; what is in
    flight at an earlier scan is finished only by ``scan`` after the task has stopped, so the last scan must come
    after that.
    """

    name: str  # as the user reads it
    stop_to_scan: bool  # reading and protecting are two steps: a running task could write between them

    def stops(self, areas: Sequence[Area]) -> bool:
        """Whether the task has to be stopped for a protecting `scan` of these areas, from before they are read."""
        return self.stop_to_scan

    @abstractmethod
    def scan(self, areas: Sequence[Area], held: PageSet, protect: bool = True) -> Scan:
        """Look at these areas: all of the task's, sorted, as maps shows them just now. With ``protect`` the next
        scan tells what was written from now on. ``held``: pages whose contents the destination has,
        or that it is owed (`RoundPlanner.known`).

        A page that is written may be gone as well, when the task threw it away while we looked.
        OSError with ESRCH or the like if the task is gone.
        """

    @property
    def compares(self) -> bool:
        """Whether `sent` has anything to do."""
        return False

    def sent(self, address: int, contents: memoryview) -> None:  # noqa: B027 - most have nothing to do
        """These contents went to the destination (for trackers that compare). Called for whole pages."""

    @abstractmethod
    def close(self) -> None:
        """Leave no trace in the task. To be called in any case, also when the task is gone."""

"""Where the pages of a dump go on their way from the source agent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import trio

from migrate.checkpoint.format import Checkpoint
from migrate.checkpoint.jobs import STREAM
from migrate.destination import RESTOREE
from migrate.engine.kinds.vma import VMA
from migrate.errors import Failed
from migrate.progress import Display
from migrate.transport import frames
from migrate.transport.frames import Buffer, Frame, Run
from migrate.transport.ring import Ring, unring


class Target(Protocol):
    """Where a checkpoint goes."""

    rounds: bool  # pages may come before the image, and again
    abandon: bool  # a write that blocks is left alone when the user interrupts
    path: str  # of the checkpoint itself

    def follow(self, pids: Mapping[int, int], renewed: Sequence[int]) -> None:
        """Who they are by now, parents first: number of each, by id. What came of others is forgotten, and of those
        that are ``renewed``: they are another program."""

    def take(self, id: int, runs: Sequence[Run], contents: Buffer) -> None:
        """A page frame of one of them. Blocks, and is called by one thread at a time."""

    def keep(self, id: int, vmas: Sequence[VMA]) -> None:
        """The memory of one of them: pages elsewhere are forgotten."""

    def begin(self, checkpoint: Checkpoint) -> None:
        """All but the pages, which come after this where there are no rounds. Blocks."""

    def finish(self) -> None:
        """It is whole when this returns. Blocks."""

    @property
    def pages(self) -> int:
        """That it holds of them."""

    @property
    def bytes(self) -> int:
        """Written."""


class Sink:
    """Passes page frames from the source agent to the target, and counts."""

    def __init__(self, target: Target, display: Display, ring: Ring) -> None:
        self._target, self._display, self._ring = target, display, ring
        self.pages = self.bytes = 0
        self._failure: OSError | None = None
        self._off = False
        self._in_flight = trio.CancelScope()
        self._since, self._before, self._rate = time.monotonic(), 0, 0.0

    async def __call__(self, frame: Frame) -> None:
        meta, contents, slot = unring(frame, self._ring)
        runs, id = frames.parse_pages(meta)[1], frame.slot - RESTOREE
        if not self._off:
            try:
                if self._target.abandon:
                    with trio.CancelScope() as self._in_flight:
                        await trio.to_thread.run_sync(self._target.take, id, runs, contents, abandon_on_cancel=True)
                else:
                    # A write to a file comes to its end, and nobody else waits for us: two switches of threads for
                    # each frame would cost as much as a third of the write.
                    self._target.take(id, runs, contents)
                    await trio.lowlevel.checkpoint()
            except OSError as error:
                self._failure, self._off = error, True
        self.bytes += len(contents)
        if slot is not None:
            self._ring.free(slot)
        self.pages += sum(run.pages for run in runs if run.what == frames.CONTENTS)
        now = time.monotonic()
        if now - self._since > 0.1:
            self._rate = (self.bytes - self._before) / (now - self._since)
            self._since, self._before = now, self.bytes
            self._display.sent(self.bytes, self.pages, self._rate)

    def stop(self) -> None:
        """Drop what comes from now on: the source, which waits for us to take it, has to hear something else."""
        self._off = True
        self._in_flight.cancel()

    def check(self) -> None:
        """Failed when something could not be written."""
        if self._failure is not None:
            raise unwritten(self._target.path, self._failure) from self._failure


def unwritten(path: str, error: OSError) -> Failed:
    """In words."""
    where = "standard output" if path == STREAM else path
    return Failed(f"{where} cannot be written: {error.strerror or error}; the process runs on")

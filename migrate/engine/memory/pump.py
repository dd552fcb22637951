"""Turns a plan into page frames: reads pages of the task, finds the zero ones, compresses.

A frame holds up to 1 MiB of contents. Its meta are the frame's flags and the number of runs (``<II``), then for each
run address, pages and flags (``<QII``): 0, contents follow in the blob in this order; 1 drop and 2 punch, see
`Erase`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from migrate.engine.kernel.proc import Proc
from migrate.engine.memory.area import Area, Content, of
from migrate.engine.memory.codec import Compressor
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.planner import Erase, Plan, RoundPlanner, Run
from migrate.engine.memory.remote import ForeignMemory
from migrate.engine.memory.tracker import Tracker

FRAME_PAGES = 256
LZ4 = 1  # flag of a frame

_HEAD = struct.Struct("<II")
_RUN = struct.Struct("<QII")
_ERASE_RUNS = 4096  # in a frame without contents
_ZEROS = bytes(PAGE)
_WORDS = PAGE // 8
_BEYOND = 1 << 64


@dataclass
class PumpStats:
    """Counted over the pump's life, in pages but for `bytes_out`."""

    sent: int = 0
    zero: int = 0
    vanished: int = 0
    erased: int = 0
    bytes_out: int = 0  # blobs and metas


@dataclass(frozen=True)
class PageFrame:
    """``blob`` lies in the pump's buffer and is good until the next frame is asked for."""

    meta: bytes
    blob: memoryview
    flags: int
    pages: int  # with contents


class PagePump:
    """Reads with one buffer of 1 MiB, whatever the size of the task. Close it after use."""

    def __init__(
        self,
        process: Proc,
        planner: RoundPlanner,
        tracker: Tracker | None = None,
        compressor: Compressor | None = None,
        stopped: Callable[[], AbstractContextManager[object]] = nullcontext,
        gently: bool = False,
    ) -> None:
        """``tracker``: told what was sent, for those that compare. No ``compressor``: none. ``stopped``: in which
        memory is read that the task itself cannot read; for kernels that give it to the task's tracer alone.
        ``gently``: see `ForeignMemory`."""
        self._planner = planner
        self._tracker = tracker
        self._compressor = compressor
        self._stopped = stopped
        self._memory = ForeignMemory(process, gently)
        self._buffer = bytearray(FRAME_PAGES * PAGE)
        self._view = memoryview(self._buffer)
        self.stats = PumpStats()

    def frames(self, plan: Plan, areas: Sequence[Area]) -> Iterator[PageFrame]:
        """The frames of a round. Erasing comes first, so that it frees memory there.

        Pages that the task takes away meanwhile are left out: the next scan tells what became of them. OSError
        (ProcessLookupError): the task is gone.
        """
        yield from self._erasing(plan.drop, Erase.DROP)
        yield from self._erasing(plan.punch, Erase.PUNCH)
        files = of(Content.PRIVATE_FILE, areas)
        shared = of(Content.SHARED, areas)
        for runs, readable in ((plan.send, True), (plan.forced, False)):
            for batch in batches(runs):
                frame = self._frame(batch, readable, files, shared)
                if frame is not None:
                    yield frame

    def _erasing(self, runs: Sequence[Run], how: Erase) -> Iterator[PageFrame]:
        for at in range(0, len(runs), _ERASE_RUNS):
            part = runs[at : at + _ERASE_RUNS]
            self.stats.erased += sum(pages for _, pages in part)
            yield self._made([(address, pages, int(how)) for address, pages in part], self._view[:0], 0)

    def _frame(
        self, batch: list[Run], readable: bool, files: list[tuple[int, int]], shared: list[tuple[int, int]]
    ) -> PageFrame | None:
        pages = sum(count for _, count in batch)
        contents = self._view[: pages * PAGE]
        with nullcontext() if readable else self._stopped():
            missing = self._memory.read(contents, batch, readable)
        self.stats.vanished += len(missing)
        zero = self._zero_pages(pages)
        if not missing and not zero:
            return self._full(batch, contents, pages)
        # Rare enough to go page by page: some pages do not travel, and the others close ranks.
        keep: list[int] = []
        addresses: list[int] = []
        erase: list[tuple[int, int, int]] = []
        index = 0
        for start, count in batch:
            for address in range(start, start + count * PAGE, PAGE):
                if index in missing:
                    pass
                elif index in zero and not _inside(address, files):
                    self.stats.zero += 1
                    if self._planner.blank(address):
                        self.stats.erased += 1
                        erase.append((address, 1, Erase.PUNCH if _inside(address, shared) else Erase.DROP))
                else:
                    keep.append(index)
                    addresses.append(address)
                index += 1
        for target, index in enumerate(keep):
            if target != index:
                self._buffer[target * PAGE : (target + 1) * PAGE] = self._buffer[index * PAGE : (index + 1) * PAGE]
        kept = [Run(*run) for run in PageSet((address, address + PAGE) for address in addresses).runs()]
        if not kept and not erase:
            return None
        return self._full(kept, self._view[: len(keep) * PAGE], len(keep), erase)

    def _full(
        self, runs: list[Run], contents: memoryview, pages: int, erase: Sequence[tuple[int, int, int]] = ()
    ) -> PageFrame:
        self._planner.sent(runs)
        if self._tracker is not None and self._tracker.compares:
            at = 0
            for address, count in runs:
                self._tracker.sent(address, contents[at : at + count * PAGE])
                at += count * PAGE
        self.stats.sent += pages
        return self._made([*erase, *((address, count, 0) for address, count in runs)], contents, pages)

    def _made(self, runs: Sequence[tuple[int, int, int]], contents: memoryview, pages: int) -> PageFrame:
        blob, flags = contents, 0
        if self._compressor is not None and pages and (block := self._compressor(contents)) is not None:
            blob, flags = memoryview(block), LZ4
        meta = b"".join([_HEAD.pack(flags, len(runs)), *(_RUN.pack(*run) for run in runs)])
        self.stats.bytes_out += len(meta) + len(blob)
        return PageFrame(meta, blob, flags, pages)

    def _zero_pages(self, pages: int) -> set[int]:
        """Indexes of the pages in the buffer that are all zero. The first word of each tells of most that they are
        not."""
        firsts = self._view[: pages * PAGE].cast("Q")[::_WORDS].tolist()
        if 0 not in firsts:
            return set()
        startswith = self._buffer.startswith
        return {index for index, word in enumerate(firsts) if not word and startswith(_ZEROS, index * PAGE)}

    def close(self) -> None:
        self._memory.close()


def batches(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs in pieces of FRAME_PAGES pages."""
    batch: list[Run] = []
    room = FRAME_PAGES
    for address, pages in runs:
        while pages:
            count = min(pages, room)
            batch.append(Run(address, count))
            address += count * PAGE
            pages -= count
            room -= count
            if not room:
                yield batch
                batch, room = [], FRAME_PAGES
    if batch:
        yield batch


def _inside(address: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """``ranges`` are sorted; there may be thousands."""
    index = bisect_right(ranges, (address, _BEYOND)) - 1
    return index >= 0 and address < ranges[index][1]

"""Pages of processes out of the files of a checkpoint.

Each restoree reads its own: pread(2) out of a file puts them straight into place, at the price of one copy. It reads as
root, before it has become the process, and by the path, which sudo(8) and a PID namespace leave as it is. Meanwhile we
read the same blocks and compare checksums.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import trio

from migrate.checkpoint.directory import Opened
from migrate.checkpoint.format import BLOCK, PAGE, Extent, extents
from migrate.checkpoint.pages import check_blocks
from migrate.destination import RESTOREE, Destination, Running
from migrate.engine.kinds.vma import PROT_WRITE
from migrate.engine.program import Program, Slot
from migrate.progress import Display

_STEP = 64 << 20  # bytes that one program reads: a disk is slow, and a program must not take 30 s
_OPS = 4096  # in one program
_PIECE = 512  # pages that are made and read at a time: they stay in the cache in between
_POPULATE_WRITE = 23  # madvise(2), Linux 5.14: making many pages at once takes less than a page fault for each
_BEYOND = 1 << 64
_AHEAD = 4  # programs on their way
_CHECKED = 16 << 20  # bytes that are checked before anybody may stop us


class FilePages:
    """Those of the processes of a checkpoint that was opened."""

    def __init__(self, found: Opened) -> None:
        self._found = found
        self._processes = [_Own(found, position) for position in range(len(found.checkpoint.processes))]

    async def fill(self, destination: Destination, display: Display) -> tuple[int, int]:
        """As `migrate.checkpoint.restore.Pages` says."""
        total = sum(extent.pages for own in self._processes for extent in own.extents)
        display.round_started(1, total)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check)
            await self._read(destination, display)
        return total, total * PAGE

    async def _read(self, destination: Destination, display: Display) -> None:
        running: list[tuple[Running, int]] = []
        begun, done = time.monotonic(), 0

        async def settle(left: int) -> None:
            nonlocal done
            while len(running) > left:
                program, pages = running.pop(0)
                await program.done()
                done += pages
                display.sent(done * PAGE, done, done * PAGE / max(time.monotonic() - begun, 1e-6))

        for position, own in enumerate(self._processes):
            for program, pages in own.programs():
                running.append((await destination.run(RESTOREE + position, program), pages))
                await settle(_AHEAD)
        await settle(0)

    # Checksums

    async def _check(self) -> None:
        for file, blocks in self._blocks():
            pages = self._found.files[file]
            step = _CHECKED // BLOCK
            for at in range(0, len(blocks), step):
                part = blocks[at : at + step]
                await trio.to_thread.run_sync(check_blocks, pages.fd, pages.sums, pages.size, part, pages.path)

    def _blocks(self) -> Iterator[tuple[int, list[int]]]:
        """The blocks of each file that are used."""
        used: dict[int, set[int]] = {}
        for own in self._processes:
            for extent in own.extents:
                first, last = extent.at * PAGE // BLOCK, -(-(extent.at + extent.pages) * PAGE // BLOCK)
                used.setdefault(extent.file, set()).update(range(first, last))
        for file, blocks in used.items():
            yield file, sorted(blocks)


class _Own:
    """Those of one process."""

    def __init__(self, found: Opened, position: int) -> None:
        self._found = found
        saved = found.checkpoint.processes[position]
        self._anonymous = [
            (vma.start, vma.end) for vma in saved.image.vmas if vma.anonymous and vma.fill_prot & PROT_WRITE
        ]
        self.extents = sorted(extents(saved, position, found.sizes), key=lambda extent: (extent.file, extent.at))

    def programs(self) -> Iterator[tuple[Program, int]]:
        for file, batch in _batches(self.extents):
            path = self._found.files[file].path
            program = Program(f"pages out of {path}")
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = program.syscall("openat", -100, program.string(path), flags, 0, label=path)
            for extent in batch:
                self._place(program, fd, extent, path)
            program.syscall("close", fd, label=path)
            yield program, sum(extent.pages for extent in batch)

    def _place(self, program: Program, fd: Slot, extent: Extent, path: str) -> None:
        for at in range(0, extent.pages, _PIECE):
            count = min(_PIECE, extent.pages - at)
            address, size = extent.address + at * PAGE, count * PAGE
            label = f"{count} pages at {address:#x} out of {path}"
            if self._is_fresh(address, address + size):
                program.syscall("madvise", address, size, _POPULATE_WRITE, label=label, ignore=True)
            program.syscall("pread64", fd, address, size, (extent.at + at) * PAGE, label=label, expect=size)

    def _is_fresh(self, start: int, end: int) -> bool:
        """Whether it is anonymous memory, all of it: where a page that is made is not first read from anywhere."""
        index = bisect_right(self._anonymous, (start, _BEYOND)) - 1
        return index >= 0 and end <= self._anonymous[index][1]


def _batches(every: Sequence[Extent]) -> Iterator[tuple[int, list[Extent]]]:
    """In pieces that one program reads, out of one file."""
    batch: list[Extent] = []
    size = 0
    for extent in every:
        while extent.pages:
            count = min(extent.pages, (_STEP - size) // PAGE)
            if batch and (not count or batch[0].file != extent.file or len(batch) >= _OPS):
                yield batch[0].file, batch
                batch, size = [], 0
                continue
            batch.append(extent._replace(pages=count))
            size += count * PAGE
            extent = extent._replace(address=extent.address + count * PAGE, pages=extent.pages - count,
                                     at=extent.at + count)  # fmt: skip
    if batch:
        yield batch[0].file, batch

"""``--verify``: the pages of the process here and there are compared while both stand still, before COMMIT.

Both agents make a digest of every page that counts (`agents.pages`). In private memory of files the two may hold
different pages as their own and still show the same: of those that only one side has, the other is asked as well.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from migrate.engine.areas import area_of
from migrate.engine.kernel.maps import PAGE
from migrate.engine.kinds.vma import PROT_READ, VMA
from migrate.engine.memory.area import Content, sort_out
from migrate.engine.memory.pageset import PageSet
from migrate.engine.process import ProcessImage
from migrate.errors import Failed
from migrate.transport.agent import Agent, making_sense, sole

_KINDS = {Content.ANONYMOUS: 0, Content.PRIVATE_FILE: 1, Content.SHARED: 2}  # agents.pages
_ALL = 3
_RECORD = struct.Struct("<QQ")
# Of struct rseq (linux/rseq.h) the kernel writes all but `flags` whenever the thread comes to run: CPU, node, and the
# critical section, which it forgets.
_RSEQ_WRITTEN = ((0, 16), (20, 12))
_AREAS = 4096  # in one request
_MOST = 1 << 16  # pages in one answer
_NAMED = 3  # pages that differ, in the message

Areas = list[tuple[int, int, int, int]]  # start, end, kind, offset


@dataclass
class Side:
    """One of the two, and what it has answered."""

    agent: Agent
    pid: int
    records: bytearray = field(default_factory=bytearray)
    unread: list[tuple[int, int]] = field(default_factory=list)
    seen: int = 0  # records

    async def ask(self, areas: Areas, masks: list[tuple[int, int]]) -> None:
        """All of it, in answers of bounded size."""
        while areas:
            some = areas[:_AREAS]
            within = [mask for mask in masks if mask[0] < some[-1][1] and mask[0] + mask[1] > some[0][0]]
            reply = await self.agent.request("pages", pid=self.pid, areas=some, masks=within)
            with making_sense(self.agent.name, "what it tells of pages"):
                if len(reply.blob) % _RECORD.size:
                    raise ValueError(f"digests in {len(reply.blob)} bytes")
                self.records += reply.blob
                self.seen += len(reply.blob) // _RECORD.size
                self.unread += [(address + 0, min(pages, _MOST)) for address, pages in reply["unread"]]
                following = some[-1][1] if reply["next"] is None else reply.number("next")
                rest = _from(areas, following)
                if rest == areas:
                    raise ValueError(f"it does not get on from {following:#x}")
            areas = rest

    def digests(self) -> dict[int, int]:
        """By page."""
        return {int(page): int(digest) for page, digest in _RECORD.iter_unpack(self.records)}


async def compare(source: Side, destination: Side, image: ProcessImage, where: str) -> tuple[int, int]:
    """Failed names pages that differ. Otherwise the number of pages that are the same, and of those that only the
    process itself could read on the destination, which were not compared."""
    areas = _areas(image.vmas)
    masks = _masks(image)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.ask, areas, masks)
            nursery.start_soon(destination.ask, areas, masks)
    except BaseExceptionGroup as group:
        raise sole(group) from None
    seen = source.seen
    if source.records == destination.records and not destination.unread:
        return seen, 0
    here, there = source.digests(), destination.digests()
    hidden = _hidden(image.vmas, destination.unread)
    odd = PageSet((page, page + PAGE) for page in here.keys() ^ there.keys() if page not in hidden)
    if files := odd.clip([(low, high) for low, high, kind, _ in areas if kind == _KINDS[Content.PRIVATE_FILE]]):
        wanted: Areas = [(low, low + pages * PAGE, _ALL, 0) for low, pages in files.runs()]
        for side, found in ((source, here), (destination, there)):
            more = Side(side.agent, side.pid)
            await more.ask(wanted, masks)
            found |= more.digests()
    different = sorted(
        page for page in here.keys() | there.keys() if page not in hidden and here.get(page) != there.get(page)
    )
    if different:
        raise Failed(_sentence(different, here, there, image.vmas, where))
    return seen, sum(page in hidden for page in here)


def _areas(vmas: Sequence[VMA]) -> Areas:
    tracked, compared = sort_out([area_of(vma) for vma in vmas])
    return sorted((area.start, area.end, _KINDS[area.content], area.offset) for area in (*tracked, *compared))


def _masks(image: ProcessImage) -> list[tuple[int, int]]:
    registered = [thread.state.rseq for thread in image.threads if thread.state.rseq is not None]
    return [(rseq.address + at, length) for rseq in registered for at, length in _RSEQ_WRITTEN]


def _from(areas: Areas, address: int) -> Areas:
    """What is left of them from an address on."""
    return [
        (max(start, address), end, kind, offset + max(start, address) - start)
        for start, end, kind, offset in areas
        if end > address
    ]


def _hidden(vmas: Sequence[VMA], unread: Sequence[tuple[int, int]]) -> PageSet:
    """Of the pages that could not be read those that are in memory which the process cannot read either: a kernel may
    keep that from everybody but its tracer (proc_mem.force_override, Linux 6.12), which the agent there is not."""
    pages = PageSet((address, address + count * PAGE) for address, count in unread)
    return pages.clip([(vma.start, vma.end) for vma in vmas if not vma.prot & PROT_READ])


def _sentence(
    pages: Sequence[int], here: dict[int, int], there: dict[int, int], vmas: Sequence[VMA], where: str
) -> str:
    starts = [vma.start for vma in vmas]
    named = []
    for page in pages[:_NAMED]:
        what = "is missing there" if page not in there else "is empty here" if page not in here else "differs"
        named.append(f"page {page:#x} of {vmas[bisect_right(starts, page) - 1].label} {what}")
    more = f", and {len(pages) - _NAMED} more" if len(pages) > _NAMED else ""
    return f"verification: memory {where} is not what it is here: {'; '.join(named)}{more}"

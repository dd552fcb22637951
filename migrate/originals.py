"""The processes that move together where they run, as the coordinator sees them: what it asks of the source agent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from migrate.engine.image.codec import decode
from migrate.engine.preview import Layout, Preview
from migrate.engine.process import ProcessImage
from migrate.engine.roster import Lineup
from migrate.engine.wire import Reader
from migrate.replicas import Replicas
from migrate.rescue import Rescue
from migrate.transport.agent import Agent, Pending, Reply

Remade = Sequence[tuple[int, int]]  # ranges that were mapped anew on the destination


class Originals:
    """The named process and its descendants, by position: parents come first. ``ids``: by which the source
    agent knows them; ``people``: number and time of start of
    each, where there are several; ``halting``: some must be held by a SIGSTOP at the commit, ``stopped``: those that
    need none (of several)."""

    def __init__(self, rescue: Rescue, pid: int) -> None:
        self._rescue, self._pid = rescue, pid
        self.ids: list[int] = []
        self._previews: dict[int, Preview] = {}
        self.people: list[list[int]] = []
        self.memory = 0  # bytes that they have, what they share counted once
        self.sending = 0.0  # seconds so far
        self.halting = True
        self.stopped: frozenset[int] = frozenset()
        self._readers: dict[int, Reader] = {}

    @property
    def source(self) -> Agent:
        """Who has them in hand."""
        return self._rescue.source

    @property
    def pids(self) -> list[int]:
        """As they are numbered here."""
        return [pid for pid, _ in self.people] or [self._pid]

    @property
    def previews(self) -> list[Preview]:
        """What was seen of them when they were met."""
        return [self._previews[id] for id in self.ids]

    @property
    def resident(self) -> int:
        """Bytes, of all."""
        return sum(each.resident for each in self.previews)

    # Before, and while they run

    async def inspect(self) -> None:
        """Find them, and have ``previews`` of them."""
        inspected = await self.source.request("inspect", pid=self._pid)
        self.ids, self.memory = list(inspected["ids"]), int(inspected["memory"])
        self._meet(0, inspected.blob)
        await self.meet(self.ids[1:])

    async def meet(self, ids: Sequence[int]) -> list[Preview]:
        """What is to be seen of these."""
        asked = [await self.source.submit("preview", member=id) for id in ids]
        for id, each in zip(ids, asked, strict=True):
            self._meet(id, (await each.reply()).blob)
        return [self._previews[id] for id in ids]

    def _meet(self, id: int, blob: bytes) -> None:
        self._previews[id], self._readers[id] = decode(Preview, blob), Reader()

    async def lineup(self, follow: bool) -> tuple[Lineup, Reply]:
        """Who there is, and how that has changed; see `Source.do_lineup`."""
        reply = await self.source.request("lineup", follow=follow)
        return decode(Lineup, reply.blob), reply

    async def name(self) -> None:
        """From now on whoever looks after what is left of us knows who they are."""
        if len(self.ids) > 1 or self.people:
            self.people = self._rescue.people = (await self.source.request("people"))["people"]

    async def track(self, tracker: str, compress: str, bandwidth: float | None) -> tuple[str, Sequence[str]]:
        """Begin to track writes. The tracker, and why no better one is used. ``bandwidth``: bytes per second."""
        self._rescue.touched = True
        reply = await self.source.request("track", tracker=tracker, compress=compress, bandwidth=bandwidth)
        return str(reply["tracker"]), reply["rejected"]

    async def layouts(
        self, members: Sequence[int] | None = None, begotten: bool = False
    ) -> tuple[dict[int, bytes], int]:
        """Their layouts, by position, and the number of pages to send. ``members``: only those at these positions;
        ``begotten``: whose restorees have just been."""
        some = range(len(self.ids)) if members is None else members
        looking = [await self.source.submit("look", member=self.ids[at], begotten=begotten) for at in some]
        replies = [await each.reply() for each in looking]
        found = {at: reply.blob for at, reply in zip(some, replies, strict=True)}
        return found, sum(int(reply["pages"]) for reply in replies)

    async def send_pages(self, remade: Mapping[int, Remade]) -> int:
        """The pages that were found; how many. ``remade``: of each, by position, what is to be sent once more."""
        begun, sending = time.monotonic(), []
        for at, remapped in remade.items():
            sending.append(await self.source.submit("send", member=self.ids[at], remapped=remapped))
        pages = sum([int((await each.reply())["pages"]) for each in sending])
        self.sending += time.monotonic() - begun
        return pages

    async def look(self, replicas: Replicas, members: Sequence[int] | None = None, begotten: bool = False) -> int:
        """Make the destination's layout theirs; the number of pages to send. See `layouts`."""
        blobs, pages = await self.layouts(members, begotten)
        await replicas.lay_out(blobs)
        return pages

    async def send(self, replicas: Replicas, members: Sequence[int] | None = None) -> int:
        """The pages that were found; how many. ``members``: see `layouts`."""
        some = range(len(self.ids)) if members is None else members
        return await self.send_pages({at: replicas.members[at].take_remade() for at in some})

    async def look_first(self, replicas: Replicas, share: bool) -> int:
        """The first of all: at the first generation; at all of them where memory cannot be ``share``d, so that all
        restorees are there before there is any."""
        if share:
            return await self.look(replicas, replicas.generations[0])
        for number in range(len(replicas.generations)):
            await replicas.beget(number)
        return await self.look(replicas)

    async def send_first(self, replicas: Replicas, started: Callable[[int], None]) -> int:
        """The first round: generation by generation, of which the first has been looked at. See `kinds.heritage`.
        ``started``: is told how many pages there are of the next one."""
        sent = 0
        for number, members in enumerate(replicas.generations):
            if number:
                await self.look(replicas, members, begotten=True)
                left = await self.source.request("inherit", members=[self.ids[at] for at in members])
                started(int(left["pages"]))
            sent += await self.send(replicas, members)
            await replicas.beget(number)
        return sent

    async def rehearse(self) -> tuple[bool, bytes]:
        """Whether it was found that others have come or gone, and the image of the first as it would be now."""
        reply = await self.source.request("rehearse")
        return reply["changed_kin"], reply.blob

    async def images(self, first: bytes) -> list[ProcessImage]:
        """All of the last rehearsal or freeze. ``first``: as it came."""
        blobs = [first, *(blob for blob, _ in await self.others())]
        images = [self.read(position, blob) for position, blob in enumerate(blobs)]
        self.see_stopped(images)
        return images

    def read(self, position: int, blob: bytes) -> ProcessImage:
        """The image of one of them, as it came."""
        return self._readers[self.ids[position]].read(blob)

    def see_stopped(self, images: Sequence[ProcessImage]) -> None:
        """Which of them stand still by themselves."""
        self.halting = any(not image.process.stopped for image in images)
        several = zip(self.pids, images, strict=True) if len(images) > 1 else ()
        self.stopped = frozenset(pid for pid, image in several if image.process.stopped)

    # The freeze

    async def freeze(self) -> Reply:
        """Stop them for good; see `Source.do_freeze`."""
        return await self.source.request("freeze")

    async def others(self) -> list[tuple[bytes, bool]]:
        """The images of all but the first as they were collected last, and whether their layout has changed since the
        last look."""
        found: list[tuple[bytes, bool]] = []
        while left := self.ids[1 + len(found) :]:
            reply = await self.source.request("images", members=left)
            found += zip(_cut(reply), map(bool, reply["changed"]), strict=True)
        return found

    async def last_look(self) -> list[Layout | None]:
        """The last one at each of them, for who does not `send_last` at once: its layout, where it is another one than
        that of the image."""
        looking = [await self.source.submit("last_look", member=id) for id in self.ids]
        replies = [await each.reply() for each in looking]
        return [decode(Layout, reply.blob) if reply["again"] else None for reply in replies]

    async def send_last(self, remade: Mapping[int, Remade], looked: bool = False) -> LastPages:
        """The last look at these, by position, unless it has been taken, and their pages."""
        ids = [self.ids[at] for at in remade]
        pending = await self.source.submit("send_last", members=ids, remapped=list(remade.values()), looked=looked)
        return LastPages(tuple(remade), pending)


@dataclass(frozen=True)
class LastPages:
    """Of some of them, on their way. ``positions``: of whom."""

    positions: tuple[int, ...]
    pending: Pending

    async def sent(self) -> list[tuple[int, float, Layout | None]]:
        """Of each its position, the seconds that the look took, and the layout that is to be followed before its pages
        can be sent, if there is one."""
        reply = await self.pending.reply()
        found = zip(self.positions, reply["answers"], _cut(reply), strict=True)
        return [
            (position, float(answer["scan"]), decode(Layout, blob) if answer["again"] else None)
            for position, answer, blob in found
        ]


def _cut(reply: Reply) -> list[bytes]:
    """A blob of several parts, by their sizes."""
    ends = [0, *itertools.accumulate(reply["sizes"])]
    return [reply.blob[start:end] for start, end in itertools.pairwise(ends)]

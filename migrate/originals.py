"""The processes that move together where they run, as the coordinator sees them: what it asks of the source agent."""

from __future__ import annotations

from collections.abc import Sequence

from migrate.engine.image.codec import decode
from migrate.engine.preview import Preview
from migrate.engine.process import ProcessImage
from migrate.engine.roster import Lineup
from migrate.engine.wire import Reader
from migrate.options import Options
from migrate.replicas import Replicas
from migrate.rescue import Rescue
from migrate.transport.agent import Agent, Pending, Reply


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
        self.ids = list(inspected["ids"])
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

    async def track(self, options: Options) -> tuple[str, Sequence[str]]:
        """Begin to track writes. The tracker, and why no better one is used."""
        self._rescue.touched = True
        reply = await self.source.request(
            "track",
            tracker=options.tracker,
            compress=options.compress,
            bandwidth=options.bandwidth,
        )
        return str(reply["tracker"]), reply["rejected"]

    async def look(self, replicas: Replicas) -> int:
        """Make the destination's layout theirs; the number of pages to send."""
        looking = [await self.source.submit("look", member=id) for id in self.ids]
        replies = [await each.reply() for each in looking]
        await replicas.lay_out([reply.blob for reply in replies])
        return sum(int(reply["pages"]) for reply in replies)

    async def send(self, replicas: Replicas) -> int:
        """The pages that were found; how many."""
        sending = [
            await self.source.submit("send", member=id, remapped=member.take_remade())
            for id, member in zip(self.ids, replicas.members, strict=True)
        ]
        return sum([int((await each.reply())["pages"]) for each in sending])

    async def rehearse(self) -> tuple[bool, bytes]:
        """Whether it was found that others have come or gone, and the image of the first as it would be now."""
        reply = await self.source.request("rehearse")
        return reply["changed_kin"], reply.blob

    async def images(self, first: bytes) -> list[ProcessImage]:
        """All of the last rehearsal. ``first``: as it came."""
        images = [self.read(first), *(image for image, _ in await self.others())]
        self.see_stopped(images)
        return images

    def read(self, first: bytes) -> ProcessImage:
        """The image of the first."""
        return self._readers[0].read(first)

    def see_stopped(self, images: Sequence[ProcessImage]) -> None:
        """Which of them stand still by themselves."""
        self.halting = any(not image.process.stopped for image in images)
        several = zip(self.pids, images, strict=True) if len(images) > 1 else ()
        self.stopped = frozenset(pid for pid, image in several if image.process.stopped)

    # The freeze

    async def freeze(self) -> Reply:
        """Stop them for good; see `Source.do_freeze`."""
        return await self.source.request("freeze")

    async def others(self) -> list[tuple[ProcessImage, bool]]:
        """The images of all but the first as they were collected last, and whether their layout has changed since the
        last look."""
        asked = [await self.source.submit("image", member=id) for id in self.ids[1:]]
        replies = [await each.reply() for each in asked]
        return [
            (self._readers[id].read(reply.blob), bool(reply["changed"]))
            for id, reply in zip(self.ids[1:], replies, strict=True)
        ]

    async def send_last(self, replicas: Replicas, position: int) -> Pending:
        """The last look at one of them, and its pages."""
        remade = replicas.members[position].take_remade()
        return await self.source.submit("send_last", member=self.ids[position], remapped=remade)

"""The processes that move together where they run, as the coordinator sees them: what it asks of the source agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from migrate.engine.image.codec import decode
from migrate.engine.preview import Preview
from migrate.engine.process import ProcessImage
from migrate.engine.wire import Reader
from migrate.options import Options
from migrate.replicas import Replicas
from migrate.rescue import Rescue
from migrate.transport.agent import Agent, Pending


class Originals:
    """The named process and its descendants, by position: parents come first. ``people``: number and time of start of
    each, where there are several; ``halting``: some must be held by a SIGSTOP at the commit, ``stopped``: those that
    need none (of several)."""

    def __init__(self, rescue: Rescue, pid: int) -> None:
        self._rescue, self._pid = rescue, pid
        self.previews: list[Preview] = []
        self.people: list[list[int]] = []
        self.memory = 0  # bytes that they have, what they share counted once
        self.halting = True
        self.stopped: frozenset[int] = frozenset()
        self._readers: list[Reader] = []

    @property
    def source(self) -> Agent:
        """Who has them in hand."""
        return self._rescue.source

    @property
    def pids(self) -> list[int]:
        """As they are numbered here."""
        return [pid for pid, _ in self.people] or [self._pid]

    @property
    def resident(self) -> int:
        """Bytes, of all."""
        return sum(each.resident for each in self.previews)

    # Before, and while they run

    async def inspect(self) -> None:
        """Find them, and have ``previews`` of them."""
        inspected = await self.source.request("inspect", pid=self._pid)
        asked = [await self.source.submit("preview", member=member) for member in range(1, inspected["members"])]
        self.memory = int(inspected["memory"])
        blobs = [inspected.blob, *[(await each.reply()).blob for each in asked]]
        self.previews = [decode(Preview, blob) for blob in blobs]
        self._readers = [Reader() for _ in blobs]

    async def name(self) -> None:
        """From now on whoever looks after what is left of us knows who they are."""
        if len(self.previews) > 1:
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

    async def look(self, replicas: Replicas, members: Sequence[int] | None = None, begotten: bool = False) -> int:
        """Make the destination's layout theirs; the number of pages to send. ``members``: only these; ``begotten``:
        they have been, just now."""
        members = range(len(replicas.members)) if members is None else members
        looking = {each: await self.source.submit("look", member=each, begotten=begotten) for each in members}
        replies = {member: await each.reply() for member, each in looking.items()}
        await replicas.lay_out({member: reply.blob for member, reply in replies.items()})
        return sum(int(reply["pages"]) for reply in replies.values())

    async def send(self, replicas: Replicas, members: Sequence[int] | None = None) -> int:
        """The pages that were found; how many."""
        members = range(len(replicas.members)) if members is None else members
        sending = []
        for position in members:
            remapped = replicas.members[position].take_remade()
            sending.append(await self.source.submit("send", member=position, remapped=remapped))
        return sum([int((await each.reply())["pages"]) for each in sending])

    async def send_first(self, replicas: Replicas, started: Callable[[int], None]) -> int:
        """Generation by generation; the first has been looked at. ``started``: is told of the pages of the others."""
        before, *others = replicas.generations
        sent = await self.send(replicas, before)
        for generation in others:
            await replicas.beget(before)
            await self.look(replicas, generation, begotten=True)
            started(int((await self.source.request("inherit", members=generation))["pages"]))
            sent += await self.send(replicas, generation)
            before = generation
        await replicas.beget(before)
        return sent

    async def rehearse(self) -> tuple[bytes, list[ProcessImage]]:
        """Their images as they would be now; the first also as it came."""
        rehearsed = (await self.source.request("rehearse")).blob
        images = [self._readers[0].read(rehearsed), *(image for image, _ in await self.others())]
        self.see_stopped(images)
        return rehearsed, images

    def see_stopped(self, images: Sequence[ProcessImage]) -> None:
        """Which of them stand still by themselves."""
        self.halting = any(not image.process.stopped for image in images)
        several = zip(self.pids, images, strict=True) if len(images) > 1 else ()
        self.stopped = frozenset(pid for pid, image in several if image.process.stopped)

    # The freeze

    async def freeze(self) -> tuple[Any, ProcessImage]:
        """Stop them for good; the answer, and the image of the first."""
        reply = await self.source.request("freeze")
        return reply, self._readers[0].read(reply.blob)

    async def others(self) -> list[tuple[ProcessImage, bool]]:
        """The images of all but the first as they were collected last, and whether their layout has changed since the
        last look."""
        asked = [await self.source.submit("image", member=member) for member in range(1, len(self._readers))]
        replies = [await each.reply() for each in asked]
        return [
            (reader.read(reply.blob), bool(reply["changed"]))
            for reader, reply in zip(self._readers[1:], replies, strict=True)
        ]

    async def send_last(self, replicas: Replicas, position: int) -> Pending:
        """The last look at one of them, and its pages."""
        remade = replicas.members[position].take_remade()
        return await self.source.submit("send_last", member=position, remapped=remade)

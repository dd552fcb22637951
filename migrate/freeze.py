"""The frozen window up to PREPARED: they stand still here, and are finished there.

What it costs is what the user calls the downtime, so everything that can be under way at once is: the source looks for
the last pages while programs are compiled, and sends them while these travel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import trio

from migrate import faults, verify
from migrate.destination import Staged
from migrate.engine import overseer
from migrate.engine.image.codec import decode
from migrate.engine.kinds.locks import Held
from migrate.engine.memory.layout import collides
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.errors import Failed
from migrate.following import Following
from migrate.ledger import Ledger
from migrate.options import Options
from migrate.originals import Originals
from migrate.progress import Display
from migrate.replicas import Replicas
from migrate.rescue import Rescue
from migrate.transport.agent import Pending


@dataclass
class Freeze:
    """Of one migration. ``phases``: the parts of it, in seconds; ``begun``: when the first thread was stopped, of
    time.monotonic()."""

    options: Options
    display: Display
    rescue: Rescue
    ledger: Ledger
    originals: Originals
    replicas: Replicas
    following: Following
    records: overseer.Records
    phases: dict[str, float] = field(default_factory=dict)
    begun: float = 0.0

    async def run(self, still: float) -> Staged:
        """``still``: seconds that they stand still at least. What is to be committed."""
        originals, replicas = self.originals, self.replicas
        reply = await originals.freeze()
        self.begun = float(reply["begun"])
        self.phases |= {name: float(reply[name]) for name in ("stop", "vdso", "collect")}
        if reply["changed_kin"]:
            await self.following.follow(look=False)
        sending: list[Pending | None] = [None] * len(replicas.members)
        if not reply["changed"]:  # mostly; then the source looks for the last pages while we compile
            sending[0] = await originals.send_last(0, replicas.first.take_remade())
        images = [originals.read(reply.blob)]
        await faults.reach("frozen")
        for position, (image, changed) in enumerate(await originals.others(), 1):
            if not changed:
                sending[position] = await originals.send_last(position, replicas.members[position].take_remade())
            images.append(image)
        hole = replicas.first.ground.whole
        if any(collides(hole, ((vma.start, vma.end) for vma in image.vmas)) for image in images):
            raise Failed("the process has come to use the memory that the restorer lives in; try again")
        await self.following.check(images)
        originals.see_stopped(images)
        replicas.check_ipc(images)
        await replicas.provide(images[0].ipc.segments, last=True)
        self.rescue.halted, self.rescue.stopped = originals.halting, originals.stopped
        for position, (member, image) in enumerate(zip(replicas.members, images, strict=True)):
            if sending[position] is None:
                replicas.borrow(member, image.vmas)
                await member.follow(image.vmas, ())
                sending[position] = await originals.send_last(position, replicas.members[position].take_remade())
        self.ledger.will_halt(originals.halting, originals.stopped)
        staged = await self._finish(images, [each for each in sending if each is not None], still)
        if self.options.verify:
            for position, image in enumerate(images):
                await self._verify(originals.pids[position], replicas.members[position].outer_pid, image)
        return staged

    async def _finish(self, images: list[ProcessImage], sending: list[Pending], still: float) -> Staged:
        originals, replicas = self.originals, self.replicas
        staged = await replicas.stage(images, self.records)
        held = {pid: Held(image.descriptors.locks) for pid, image in zip(originals.pids, images, strict=True)}
        if any(each.locks for each in held.values()):
            self.rescue.locks = held
            self.ledger.locks(held)
            await originals.source.request("unlock")
        scanned, again = 0.0, False
        for position, pending in enumerate(sending):
            last = await pending.reply()
            if last["again"]:
                again = True
                layout = decode(Layout, last.blob)
                await replicas.provide(layout.segments)
                images[position] = replace(images[position], vmas=layout.vmas)
                replicas.borrow(replicas.members[position], layout.vmas)
                await replicas.members[position].follow(layout.vmas, layout.fill)
                last = await (await originals.send_last(position, replicas.members[position].take_remade())).reply()
            scanned += float(last["scan"])
        if again:
            staged = await replicas.stage(images, self.records)
        sent = time.monotonic()
        await faults.reach("sent")
        self.rescue.prepared = True
        await replicas.finish(staged)
        await trio.sleep_until(trio.current_time() + self.begun + still - time.monotonic())
        await faults.reach("restored")
        self.phases["scan"] = scanned
        self.phases["send"] = sent - self.begun - sum(self.phases.values())
        self.phases["restore"] = time.monotonic() - sent
        return staged

    async def _verify(self, pid: int, there_pid: int, image: ProcessImage) -> None:
        """Page by page, while both stand still."""
        begun = time.monotonic()
        destination = self.replicas.destination
        name = destination.name
        here, there = verify.Side(self.originals.source, pid), verify.Side(destination.agent, there_pid)
        same, hidden = await verify.compare(here, there, image, f"on {name}")
        self.phases["verify"] = self.phases.get("verify", 0.0) + time.monotonic() - begun
        self.display.detail(f"verified {same:,} pages")
        if hidden:
            self.display.warn(f"{hidden:,} pages that the kernel of {name} shows to nobody were not verified")

"""The frozen window up to PREPARED: they stand still here, and are finished there.

What it costs is what the user calls the downtime, so everything that can be under way at once is: the source looks for
the last pages while programs are compiled, and sends them while these travel.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import trio

from migrate import faults, verify
from migrate.destination import Staged
from migrate.engine import overseer
from migrate.engine.kinds.locks import Held
from migrate.engine.memory.layout import collides
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.errors import Failed
from migrate.following import Following
from migrate.ledger import Ledger
from migrate.options import Options
from migrate.originals import LastPages, Originals
from migrate.progress import Display
from migrate.replicas import Replicas
from migrate.rescue import Rescue


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
        told = [(reply.blob, bool(reply["changed"])), *await originals.others()]
        # Mostly of all: the source looks for the last pages while we compile.
        steady = {at: replicas.members[at].take_remade() for at, (_, changed) in enumerate(told) if not changed}
        sending = [await originals.send_last(steady)] if steady else []
        await faults.reach("frozen")
        images = [originals.read(position, blob) for position, (blob, _) in enumerate(told)]
        hole = replicas.first.ground.whole
        if any(collides(hole, ((vma.start, vma.end) for vma in image.vmas)) for image in images):
            raise Failed("the process has come to use the memory that the restorer lives in; try again")
        await self.following.check(images)
        originals.see_stopped(images)
        replicas.check_ipc(images)
        await replicas.provide(images[0].ipc.segments, last=True)
        self.rescue.halted, self.rescue.stopped = originals.halting, originals.stopped
        moved = [at for at in range(len(images)) if at not in steady]
        for at in moved:
            replicas.borrow(replicas.members[at], images[at].vmas)
            await replicas.members[at].follow(images[at].vmas, ())
        if moved:
            sending.append(await originals.send_last({at: replicas.members[at].take_remade() for at in moved}))
        self.ledger.will_halt(originals.halting, originals.stopped)
        staged = await self._finish(images, sending, still)
        if self.options.verify:
            for position, image in enumerate(images):
                await self._verify(originals.pids[position], replicas.members[position].outer_pid, image)
        return staged

    async def _finish(self, images: list[ProcessImage], sending: Sequence[LastPages], still: float) -> Staged:
        originals, replicas = self.originals, self.replicas
        staged = await replicas.stage(images, self.records)
        held = {pid: Held(image.descriptors.locks) for pid, image in zip(originals.pids, images, strict=True)}
        if any(each.locks for each in held.values()):
            self.rescue.locks = held
            self.ledger.locks(held)
            await originals.source.request("unlock")
        scanned, again = 0.0, False
        for last in sending:
            for position, seconds, layout in await last.sent():
                scanned += seconds
                if layout is not None:
                    again = True
                    scanned += await self._send_again(position, layout, images)
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

    async def _send_again(self, position: int, layout: Layout, images: list[ProcessImage]) -> float:
        """What was found at the last look is another layout than that of the image. The seconds that looking took."""
        replica = self.replicas.members[position]
        await self.replicas.provide(layout.segments)
        images[position] = replace(images[position], vmas=layout.vmas)
        self.replicas.borrow(replica, layout.vmas)
        await replica.follow(layout.vmas, layout.fill)
        ((_, seconds, _),) = await (await self.originals.send_last({position: replica.take_remade()})).sent()
        return seconds

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

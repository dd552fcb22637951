"""The story of a dump.

    preflight → rounds → rehearsal → freeze → on the disk → the process ends, or goes on

It is that of a migration up to the freeze, of the process and all its descendants. Whatever fails before the checkpoint
is whole, or when the user interrupts, they go on and no checkpoint is left.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import trio

from migrate import faults
from migrate.askpass import prompt
from migrate.checkpoint.format import Checkpoint, Host, Saved
from migrate.checkpoint.jobs import Dump, Outcome
from migrate.checkpoint.sink import Sink, Target, unwritten
from migrate.engine.clocks import Clocks
from migrate.engine.image.codec import decode
from migrate.engine.kinds import common
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.vma import VMA
from migrate.engine.needed import needs_of
from migrate.engine.preview import Layout, Preview
from migrate.engine.process import ProcessImage
from migrate.errors import Failed, Refused
from migrate.originals import Originals
from migrate.policy import Decision, Limits, PrecopyPolicy
from migrate.progress import Display
from migrate.report import Round
from migrate.rescue import Rescue
from migrate.source_agent import source_agent
from migrate.transport.agent import Agent, AgentError
from migrate.transport.ring import Ring

_ATTEMPTS = 4  # to dump a tree that others join or leave meanwhile
_ROUNDS = 5  # at most: what a process writes again and again need not be written to the disk as often


async def dump(job: Dump, display: Display, target: Target) -> Outcome:
    """Writes the checkpoint to ``target``. Raises a MigrateError that says why not; then the process runs on."""
    begun = time.monotonic()
    for left in range(_ATTEMPTS, -1, -1):
        try:
            with trio.CancelScope() as interruptible:
                async with _connected(job, display, target) as (rescue, sink):
                    found = await _Dumping(job, display, target, rescue, sink, interruptible).run()
            break
        except AgentError as error:
            if error.kind != "kin" or not left:
                raise
            display.note(f"{error}: once more, with those that there are now")
    return replace(found, total_s=time.monotonic() - begun)


@asynccontextmanager
async def _connected(job: Dump, display: Display, target: Target) -> AsyncIterator[tuple[Rescue, Sink]]:
    async with AsyncExitStack() as stack:
        ring = stack.enter_context(Ring.create())
        sink = Sink(target, display, ring)
        asks = prompt(display) is not None
        source = await stack.enter_async_context(source_agent(job.pid, ring, sink, display, asks, "dump"))
        yield Rescue(job.pid, source.agent, source.stream, ring, display, source.sudo), sink


@dataclass
class _Dumping:
    job: Dump
    display: Display
    target: Target
    rescue: Rescue
    sink: Sink
    interruptible: trio.CancelScope
    phases: dict[str, float] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)  # of mapped files, by path
    _fill: dict[int, set[int]] = field(default_factory=dict)  # found at any look: what was sent is not found again

    def __post_init__(self) -> None:
        self.originals = Originals(self.rescue, self.job.pid)

    @property
    def source(self) -> Agent:
        return self.rescue.source

    async def run(self) -> Outcome:
        try:
            preview = await self._preflight()
            await self._track()
            await self._look()
            if self.target.rounds:
                await self._copy()
            await self._rehearse()
            await faults.reach("rehearsed")
            with _frozen(self.display):
                frozen, images, clocks = await self._freeze()
                await self._last_pages(images, clocks)
                if self.job.leave_running:
                    await self.source.request("resume")
                    frozen = time.monotonic() - frozen
                    await faults.reach("resumed")
            self.display.phase("writing", self.target.path)
            await self._finish()
            # There is a checkpoint: from here on the process goes on or ends as was asked for, whoever interrupts.
            self.interruptible.shield = True
            self.display.committing, self.display.decided = True, "the checkpoint is whole"
            await faults.reach("whole")
            if not self.job.leave_running:
                frozen = time.monotonic() - frozen
                await self._end()
        except BaseException:
            with trio.CancelScope(shield=True):
                self.sink.stop()
                await self.rescue.let_go()
            raise
        return Outcome(
            True,
            "dumped",
            self.target.path,
            self.job.pid,
            preview.comm,
            processes=len(images),
            leave_running=self.job.leave_running,
            pages=self.target.pages,
            bytes=self.target.bytes,
            frozen_ms=frozen * 1000,
            phases_ms={name: value * 1000 for name, value in self.phases.items()},
        )

    async def _preflight(self) -> Preview:
        self.display.phase("preflight")
        await self.originals.inspect()
        previews = self.originals.previews
        if problems := [problem for each in previews for problem in each.problems]:
            raise Refused(problems)
        await self._digest(need for each in previews for need in each.needs)
        await faults.reach("preflight")
        await self.originals.name()
        self._met()
        return previews[0]

    def _met(self, renewed: Sequence[int] = ()) -> None:
        """Who there is. ``renewed``: have executed another program since."""
        originals = self.originals
        self.target.follow({id: each.pid for id, each in zip(originals.ids, originals.previews, strict=True)}, renewed)
        self._fill = {id: set() if id in renewed else self._fill.get(id, set()) for id in originals.ids}

    async def _follow(self, look: bool) -> None:
        """Those that have come or gone. ``look``: by now; else it is about what the source has found already."""
        lineup, told = await self.originals.lineup(look)
        for pid in told["left"]:
            self.display.warn(f"process {pid} is no descendant of the others any more, and is not in the checkpoint")
        if not told["changed"]:
            return
        previews = await self.originals.meet([*told["born"], *told["renewed"]])
        if problems := [problem for each in previews for problem in each.problems]:
            raise Refused(problems)
        self.originals.ids = list(lineup.ids)
        await self.originals.name()
        self._met(told["renewed"])

    async def _rehearse(self) -> None:
        """Refusals that show only from inside come now, and all paths are warm."""
        changed, first = await self.originals.rehearse()
        if changed:
            await self._follow(look=False)
        await self.originals.images(first)

    async def _digest(self, needs: Iterable[FileNeed]) -> None:
        """What is in mapped files: they are compared when it is restored."""
        paths = sorted({need.path for need in needs if need.content} - set(self._digests))
        answers = (await self.source.request("digest", paths=paths))["digests"] if paths else []
        found = dict(zip(paths, answers, strict=True))
        wrong = [f"{path}: {os.strerror(answer['errno'])}" for path, answer in found.items() if "errno" in answer]
        if wrong:
            raise Failed(f"a file that is mapped cannot be read: {wrong[0]}")
        self._digests |= {path: answer["digest"] for path, answer in found.items()}

    async def _track(self) -> None:
        tracker, rejected = await self.originals.track(self.job.tracker, "none", None)
        for reason in rejected:
            self.display.detail(f"dirty pages by {tracker}: {reason}")
        await self._follow(look=False)
        await faults.reach("tracked")

    async def _look(self) -> int:
        blobs, pages = await self.originals.layouts()
        layouts = [decode(Layout, blob) for blob in blobs.values()]
        self._keep([layout.vmas for layout in layouts])
        for id, layout in zip(self.originals.ids, layouts, strict=True):
            self._fill[id] |= set(layout.fill)
        return pages

    def _keep(self, spaces: Sequence[Sequence[VMA]]) -> None:
        """Their memory, each part of an object that several share with the first that shows it."""
        for id, vmas, elsewhere in zip(self.originals.ids, spaces, common.elsewhere(spaces), strict=True):
            self.target.keep(id, [vma for vma in vmas if vma.start not in elsewhere])

    async def _send(self) -> int:
        """The pages that were found; they have been written when this returns. How many."""
        pages = await self.originals.send_pages(dict.fromkeys(range(len(self._fill)), ()))
        self.sink.check()
        return pages

    async def _copy(self) -> None:
        """Rounds of pages while they run, so that they are stopped for what is left alone."""
        self.display.phase("copying")
        policy = PrecopyPolicy(Limits(self.job.max_downtime, _ROUNDS, "continue"))
        pages = -1
        while True:
            begun, before = time.monotonic(), self.sink.bytes
            if pages >= 0:
                self.display.round_started(len(self.display.rounds) + 1, pages)
            sent = await self._send()
            await faults.reach("round")
            await self._follow(look=True)
            pages = await self._look()
            round = Round(sent, self.sink.bytes - before, time.monotonic() - begun, pages)
            self.display.round_finished(round)
            verdict = policy.after(round)
            self.display.detail(verdict.reason)
            if verdict.decision is not Decision.CONTINUE:
                return

    async def _freeze(self) -> tuple[float, list[ProcessImage], Clocks]:
        self.display.phase("freezing")
        reply = await self.originals.freeze()
        clocks = Clocks.here()
        self.phases = {name: float(reply[name]) for name in ("stop", "vdso", "collect")}
        await faults.reach("frozen")
        if reply["changed_kin"]:
            await self._follow(look=False)
        return float(reply["begun"]), await self.originals.images(reply.blob), clocks

    async def _last_pages(self, images: list[ProcessImage], clocks: Clocks) -> None:
        """All that is to be written but for its end."""
        begun = time.monotonic()
        # Of all of them before the first page is written, for a stream begins with the image.
        for position, (id, layout) in enumerate(
            zip(self.originals.ids, await self.originals.last_look(), strict=True)
        ):
            if layout is not None:
                self._fill[id] |= set(layout.fill)
                images[position] = replace(images[position], vmas=layout.vmas)
        self._keep([image.vmas for image in images])
        needs = [needs_of(preview, image) for preview, image in zip(self.originals.previews, images, strict=True)]
        await self._digest(need for each in needs for need in each)
        await self._begin(self._checkpoint(images, needs, clocks))
        await (await self.originals.send_last(dict.fromkeys(range(len(images)), ()), looked=True)).sent()
        self.sink.check()
        await faults.reach("sent")
        self.phases["pages"] = time.monotonic() - begun

    def _checkpoint(
        self, images: Sequence[ProcessImage], needs: Sequence[tuple[FileNeed, ...]], clocks: Clocks
    ) -> Checkpoint:
        uname = os.uname()
        host = Host(uname.nodename, uname.release, clocks.boot_id, clocks.monotonic, clocks.boottime)
        processes = []
        fills = [self._fill[id] for id in self.originals.ids]
        for preview, image, its, known in zip(self.originals.previews, images, needs, fills, strict=True):
            preview = replace(
                preview,
                tids=tuple(thread.tid for thread in image.threads),
                vmas=image.vmas,
                needs=its,
                streams=image.descriptors.streams,
                descriptors=tuple(descriptor.number for descriptor in image.descriptors.descriptors),
                kin=image.kin,
            )
            fill = tuple(vma.start for vma in image.vmas if vma.start in known)
            processes.append(Saved(preview, image, fill, b""))
        return Checkpoint(time.time(), host, self._digests, (), tuple(processes))

    async def _begin(self, checkpoint: Checkpoint) -> None:
        try:
            await trio.to_thread.run_sync(self.target.begin, checkpoint)
        except OSError as error:
            raise unwritten(self.target.path, error) from error

    async def _finish(self) -> None:
        begun = time.monotonic()
        try:
            await trio.to_thread.run_sync(self.target.finish, abandon_on_cancel=self.target.abandon)
        except OSError as error:
            raise unwritten(self.target.path, error) from error
        self.phases["disk"] = time.monotonic() - begun

    async def _end(self) -> None:
        """The checkpoint is whole: now the process may go."""
        try:
            await self.source.request("kill")
            reply = await self.source.request("reap")
        except Failed as error:
            raise Failed(
                f"the checkpoint {self.target.path} is whole, but process {self.job.pid} could not be ended: {error}"
            ) from error
        for each in reply["left"]:
            self.display.warn(each)


@contextmanager
def _frozen(display: Display) -> Iterator[None]:
    """Neither drawing nor collecting garbage while the process stands still."""
    display.suspend()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        display.resume()

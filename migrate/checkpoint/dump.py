"""The story of a dump.

    preflight → rounds → rehearsal → freeze → on the disk → the process ends, or goes on

It is that of a migration up to the freeze. Whatever fails before the checkpoint is whole, or when the user interrupts,
the process goes on and no checkpoint is left.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from migrate import faults
from migrate.askpass import prompt
from migrate.checkpoint.format import Checkpoint, Host, Saved, needs_of
from migrate.checkpoint.jobs import STREAM, Dump, Outcome
from migrate.engine.clocks import Clocks
from migrate.engine.image.codec import decode
from migrate.engine.kinds.vma import VMA
from migrate.engine.preview import Layout, Preview
from migrate.engine.process import ProcessImage
from migrate.engine.wire import Reader
from migrate.errors import Failed, Problem, Refused
from migrate.policy import Decision, Limits, PrecopyPolicy
from migrate.progress import Display
from migrate.report import Round
from migrate.rescue import Rescue
from migrate.source_agent import source_agent
from migrate.transport import frames
from migrate.transport.agent import Agent, Reply
from migrate.transport.frames import Buffer, Frame, Run
from migrate.transport.ring import Ring, unring

_ROUNDS = 5  # at most: what a process writes again and again need not be written to the disk as often


class Target(Protocol):
    """Where a checkpoint goes."""

    rounds: bool  # pages may come before the image, and again
    abandon: bool  # a write that blocks is left alone when the user interrupts
    path: str  # of the checkpoint itself

    def take(self, runs: Sequence[Run], contents: Buffer) -> None:
        """A page frame. Blocks, and is called by one thread at a time."""

    def keep(self, vmas: Sequence[VMA]) -> None:
        """The memory of the process: pages elsewhere are forgotten."""

    def begin(self, checkpoint: Checkpoint) -> None:
        """All but the pages, which come after this where there are no rounds. Blocks."""

    def finish(self) -> None:
        """It is whole when this returns. Blocks."""

    @property
    def pages(self) -> int:
        """That it holds of the process."""

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
        runs = frames.parse_pages(meta)[1]
        if not self._off:
            try:
                if self._target.abandon:
                    with trio.CancelScope() as self._in_flight:
                        await trio.to_thread.run_sync(self._target.take, runs, contents, abandon_on_cancel=True)
                else:
                    # A write to a file comes to its end, and nobody else waits for us: two switches of threads for
                    # each frame would cost as much as a third of the write.
                    self._target.take(runs, contents)
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


async def dump(job: Dump, display: Display, target: Target) -> Outcome:
    """Writes the checkpoint to ``target``. Raises a MigrateError that says why not; then the process runs on."""
    begun = time.monotonic()
    with trio.CancelScope() as interruptible:
        async with _connected(job, display, target) as (rescue, sink):
            found = await _Dumping(job, display, target, rescue, sink, interruptible).run()
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
    _reader: Reader = field(default_factory=Reader)
    _fill: set[int] = field(default_factory=set)  # what was found at any look: what was sent is not found again

    @property
    def source(self) -> Agent:
        return self.rescue.source

    async def run(self) -> Outcome:
        try:
            preview, digests = await self._preflight()
            await self._track()
            await self._look()
            if self.target.rounds:
                await self._copy()
            await self._rehearse()
            await faults.reach("rehearsed")
            with _frozen(self.display):
                frozen, image, clocks = await self._freeze()
                await self._last_pages(preview, digests, image, clocks)
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
            leave_running=self.job.leave_running,
            pages=self.target.pages,
            bytes=self.target.bytes,
            frozen_ms=frozen * 1000,
            phases_ms={name: value * 1000 for name, value in self.phases.items()},
        )

    async def _preflight(self) -> tuple[Preview, dict[str, str]]:
        self.display.phase("preflight")
        inspected = await self.source.request("inspect", pid=self.job.pid)
        preview = decode(Preview, inspected.blob)
        problems = [*preview.problems, *_descendants(preview, len(inspected["ids"]))]
        if problems:
            raise Refused(problems)
        digests = await self._digests(sorted({need.path for need in preview.needs if need.content}))
        await faults.reach("preflight")
        return preview, digests

    async def _digests(self, paths: list[str]) -> dict[str, str]:
        """What is in mapped files: they are compared when it is restored."""
        answers = (await self.source.request("digest", paths=paths))["digests"] if paths else []
        found = dict(zip(paths, answers, strict=True))
        wrong = [f"{path}: {os.strerror(answer['errno'])}" for path, answer in found.items() if "errno" in answer]
        if wrong:
            raise Failed(f"a file that is mapped cannot be read: {wrong[0]}")
        return {path: answer["digest"] for path, answer in found.items()}

    async def _track(self) -> None:
        self.rescue.touched = True
        reply = await self.source.request("track", tracker=self.job.tracker, compress="none", bandwidth=None)
        for reason in reply["rejected"]:
            self.display.detail(f"dirty pages by {reply['tracker']}: {reason}")
        await faults.reach("tracked")

    async def _look(self) -> int:
        reply = await self.source.request("look")
        layout = decode(Layout, reply.blob)
        self.target.keep(layout.vmas)
        self._fill |= set(layout.fill)
        return int(reply["pages"])

    async def _send(self, verb: str) -> Reply:
        """Pages; they have been written when this returns."""
        reply = await self.source.request(verb, remapped=[])
        self.sink.check()
        return reply

    async def _copy(self) -> None:
        """Rounds of pages while it runs, so that it is stopped for what is left alone."""
        self.display.phase("copying")
        policy = PrecopyPolicy(Limits(self.job.max_downtime, _ROUNDS, "continue"))
        pages = -1
        while True:
            begun, before = time.monotonic(), self.sink.bytes
            if pages >= 0:
                self.display.round_started(len(self.display.rounds) + 1, pages)
            sent = await self._send("send")
            await faults.reach("round")
            pages = await self._look()
            round = Round(int(sent["pages"]), self.sink.bytes - before, time.monotonic() - begun, pages)
            self.display.round_finished(round)
            verdict = policy.after(round)
            self.display.detail(verdict.reason)
            if verdict.decision is not Decision.CONTINUE:
                return

    async def _rehearse(self) -> None:
        """The freeze, but for its end: refusals that show only from inside come now, and all paths are warm."""
        self._reader.read((await self.source.request("rehearse")).blob)

    async def _freeze(self) -> tuple[float, ProcessImage, Clocks]:
        self.display.phase("freezing")
        reply = await self.source.request("freeze")
        clocks = Clocks.here()
        self.phases = {name: float(reply[name]) for name in ("stop", "vdso", "collect")}
        await faults.reach("frozen")
        return float(reply["begun"]), self._reader.read(reply.blob), clocks

    async def _last_pages(
        self, preview: Preview, digests: dict[str, str], image: ProcessImage, clocks: Clocks
    ) -> None:
        """All that is to be written but for its end."""
        begun = time.monotonic()
        needs = needs_of(preview, image)
        missing = sorted({need.path for need in needs if need.content} - set(digests))
        digests = {**digests, **await self._digests(missing)}
        uname = os.uname()
        host = Host(uname.nodename, uname.release, clocks.boot_id, clocks.monotonic, clocks.boottime)
        preview = replace(
            preview,
            tids=tuple(thread.tid for thread in image.threads),
            vmas=image.vmas,
            needs=needs,
            streams=image.descriptors.streams,
            descriptors=tuple(descriptor.number for descriptor in image.descriptors.descriptors),
        )

        def made(vmas: tuple[VMA, ...]) -> Checkpoint:
            fill = tuple(vma.start for vma in vmas if vma.start in self._fill)
            saved = Saved(replace(preview, vmas=vmas), replace(image, vmas=vmas), fill, b"")
            return Checkpoint(time.time(), host, digests, (), (saved,))

        self.target.keep(image.vmas)
        await self._begin(made(image.vmas))
        last = await self._send("send_last")
        if last["again"]:  # nothing was sent
            layout = decode(Layout, last.blob)
            self._fill |= set(layout.fill)
            self.target.keep(layout.vmas)
            await self._begin(made(layout.vmas))
            await self._send("send_last")
        await faults.reach("sent")
        self.phases["pages"] = time.monotonic() - begun

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
            await self.source.request("reap")
        except Failed as error:
            raise Failed(
                f"the checkpoint {self.target.path} is whole, but process {self.job.pid} could not be ended: {error}"
            ) from error


def _descendants(preview: Preview, members: int) -> list[Problem]:
    """``members``: processes in its tree, dead ones left out."""
    if members == 1 and not preview.kin.zombies:
        return []
    what = "it has children, and a checkpoint has room for one process only"
    return [Problem(f"pid {preview.pid}", what, "try again when they have ended and it has waited for them")]


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

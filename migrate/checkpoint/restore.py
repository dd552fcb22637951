"""The story of a restore.

    read → preflight → restoree → pages → the rest → commit

It is the second half of a migration, done by an agent on this host: whatever is compiled is compiled for this host as
it is now. Until the commit nothing of the process has run, and a failure leaves nothing of it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from agents import journal, settling
from migrate import faults, preflight
from migrate.askpass import prompt
from migrate.checkpoint.format import Checkpoint
from migrate.checkpoint.jobs import Outcome, Restore
from migrate.destination import RESTOREE, Destination, Facts, Inside, Staged
from migrate.engine import overseer, restore
from migrate.engine.clocks import Clocks, wanted_offsets
from migrate.engine.descent import Descent
from migrate.engine.image.codec import encode
from migrate.engine.kernel.timens import Offsets
from migrate.engine.kinds import needs, terminal, terminals
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.memory.layout import choose_region, ranges
from migrate.engine.preview import Layout, Preview
from migrate.engine.process import ProcessImage
from migrate.engine.shares import MEMORY
from migrate.errors import Failed, InDoubt, NotCommitted, NumberTaken, Problem, Refused
from migrate.progress import Display
from migrate.replica import Replica
from migrate.replicas import Replicas
from migrate.transport import local
from migrate.transport.agent import Agent, making_sense, open_agent

_HERE = "this host"
_LEASE = 10.0  # seconds that a process that is ready waits for the command, which is on the same host
_PING = 15.0  # seconds between two signs of life
_NOW, _THEN = "now", "in the checkpoint"


class Pages(Protocol):
    """Where the pages of the processes come from."""

    async def fill(self, destination: Destination, display: Display) -> tuple[int, int]:
        """Put all of them into the restorees; how many, and the bytes that were read. They are as they were written,
        and all are there, when this returns."""


async def bring_back(
    job: Restore, display: Display, path: str, checkpoint: Checkpoint, pages: Pages
) -> Outcome:
    """Restores the processes of ``checkpoint``, which comes from ``path``. Raises a MigrateError that says why not."""
    begun = time.monotonic()
    try:
        found = await _attempt(job, display, path, checkpoint, pages, own_numbers=False)
    except NumberTaken as error:
        display.note(f"{error}: once more, in a PID namespace of its own")
        found = await _attempt(job, display, path, checkpoint, pages, own_numbers=True)
    return replace(found, total_s=time.monotonic() - begun)


async def _attempt(
    job: Restore, display: Display, path: str, checkpoint: Checkpoint, pages: Pages, own_numbers: bool
) -> Outcome:
    with trio.CancelScope() as interruptible:
        async with _agent(display) as agent:
            restoring = _Restoring(job, display, path, checkpoint, pages, agent, interruptible, own_numbers)
            found = await restoring.run()
    return found


@asynccontextmanager
async def _agent(display: Display) -> AsyncIterator[Agent]:
    """The destination agent, here, as root."""
    sudo: tuple[str, ...] = ()
    asks = prompt(display) is not None
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise Refused([Problem("here", "restoring takes root, and there is no sudo", "run it as root")])
        sudo = ("sudo", "--") if asks else ("sudo", "-n", "--")
        display.note("restoring takes root: the agent runs by sudo")
    async with (
        local.start(local.argv("agents.destination", sudo)) as stream,
        open_agent(stream, "the agent here") as agent,
        trio.open_nursery() as nursery,
    ):
        if sudo:
            display.suspend()
            try:
                await agent.request("ping")
            finally:
                display.resume()
        nursery.start_soon(_ping, agent)
        yield agent
        nursery.cancel_scope.cancel()


async def _ping(agent: Agent) -> None:
    try:
        while True:
            await trio.sleep(_PING)
            await agent.submit("ping")
    except Failed:
        return  # whoever asks it next is told why


@dataclass
class _Restoring:
    job: Restore
    display: Display
    path: str
    checkpoint: Checkpoint
    pages: Pages
    agent: Agent
    interruptible: trio.CancelScope
    own_numbers: bool
    phases: dict[str, float] = field(default_factory=dict)
    id: str = field(default_factory=journal.new_id)

    @property
    def previews(self) -> list[Preview]:
        return [saved.preview for saved in self.checkpoint.processes]

    @property
    def images(self) -> list[ProcessImage]:
        return [saved.image for saved in self.checkpoint.processes]

    async def run(self) -> Outcome:
        preview = self.previews[0]
        self._destination = Destination(self.agent, _HERE, preview.pid)
        try:
            begun = time.monotonic()
            facts, inside, replica = await self._prepare()
            await replica.create(inside.maps, inside.overseer)
            await faults.reach("created")
            for number in range(len(replica.generations)):
                await replica.beget(number)
            await replica.provide(self.images[0].ipc.segments)
            layouts = [encode(Layout(each.image.vmas, each.fill)) for each in self.checkpoint.processes]
            await replica.lay_out(dict(enumerate(layouts)))
            self.display.phase("reading", self.path)
            filling = time.monotonic()
            pages, size = await self.pages.fill(self._destination, self.display)
            await self.agent.request("sync")
            filled = time.monotonic()
            await faults.reach("filled")
            records = overseer.Records(
                *(journal.line(state, facts.there.boot_id) for state in
                  (journal.COMMITTED, journal.RELEASING, journal.RELEASED))
            )  # fmt: skip
            staged = await replica.stage(self.images, records)
            await replica.finish(staged)
            await faults.reach("restored")
            self.interruptible.shield = True
            self.display.committing, self.display.decided = True, "the process is being let go"
            with trio.CancelScope(shield=True):
                await self._commit(staged)
        except BaseException as error:
            await self._abort(str(error) or type(error).__name__)
            raise
        done = time.monotonic()
        self.phases = {"prepare": filling - begun, "pages": filled - filling, "restore": done - filled}
        return Outcome(
            True,
            "restored",
            self.path,
            preview.pid,
            preview.comm,
            processes=len(self.previews),
            new_pid=replica.first.outer_pid,
            pages=pages,
            bytes=size,
            phases_ms={name: value * 1000 for name, value in self.phases.items()},
            stdio_log=replica.first.ground.stdio,
            overseer=inside.overseer,
        )

    # Before anything is made

    async def _prepare(self) -> tuple[Facts, Inside, Replicas]:
        """Every reason why they cannot be restored here and now, and what they will stand on."""
        self.display.phase("preflight")
        host, previews = self.checkpoint.host, self.previews
        preview, tree = previews[0], [image.kin for image in self.images]
        facts = await self._destination.facts()
        # Its clocks go on from when it was dumped, also on the host and in the boot that it comes from.
        facts = replace(facts, here=Clocks("", host.monotonic, host.boottime))
        others = sum(each.resident for each in previews[1:])
        problems = preflight.host_problems(preview, facts, self.job.no_clock, others)
        for each in previews:
            problems += preflight.process_problems(each, facts)
        group, homeless = preflight.control_group(self.job.cgroup, previews)
        problems += homeless
        wrong, taken = await self._files(tuple(need for each in previews for need in each.needs))
        if problems or wrong:
            raise Refused([*problems, *wrong])
        wanted = {tid for each in previews for tid in each.tids} | Descent(tree).numbers
        if used := sorted(facts.tids & wanted):
            self.display.note(f"pid {used[0]} is taken: the process gets a PID namespace of its own")
        names = terminals.numbers(need for each in previews for need in each.needs)
        if clash := sorted(names & terminal.occupied(taken)):
            path = terminal.path(clash[0])
            self.display.note(f"terminal {path} is taken: the process gets a /dev/pts of its own")
        as_init = bool(used) or bool(clash) or self.own_numbers
        own_terminals = as_init and bool(names)
        await self._begin(preview)
        clocks = self._clocks(preview, facts)
        inside = await self._destination.start_overseer(
            as_init, clocks, len(previews), os.getpid() if self.job.stdio else 0, self.images[0].ipc
        )
        await self._destination.join(group)
        await self._destination.name_host(preview.surroundings.names)
        ia32 = await self._destination.ia32(previews)
        with making_sense(self.agent.name, "its vDSO"):
            judged = [preflight.kernel_problems(each, inside, ia32) for each in previews]
        problems = [problem for found, _ in judged for problem in found]
        problems += preflight.clock_problems(inside, self.job.no_clock) + preflight.ipc_problems(inside)
        lacking, warnings = preview.cpu.missing(inside.cpu, self.job.cpu_check)
        for line in judged[0][1].table():
            self.display.detail(line)
        occupied = [*((vma.start, vma.end) for each in previews for vma in each.vmas), *ranges(inside.maps)]
        tenants = sum(not each.owns(MEMORY) for each in tree)
        room = overseer.hole_size(max(len(each.tids) for each in previews))
        hole, region = choose_region(occupied, room, tenants, any(each.compat for each in previews))
        ground = restore.Ground(
            hole=hole,
            region=region,
            channels=preflight.channels(previews, facts, 3 if self.job.stdio else 0),
            destination=replace(facts.task, timers_by_id=inside.timers_by_id),
            carrier=preview.cpu.carrier(inside.cpu),
            numbers={},
            stdio=await self._output(previews),
            taken=terminals.without(taken) if own_terminals else taken,
            own_terminals=own_terminals,
            droppable=inside.droppable,
            member=len(previews) > 1 or not tree[0].single,
        )
        members = [
            Replica(self._destination, replace(ground, verdict=verdict), facts.pipe_max_size, each.pid, slot)
            for slot, (each, (_, verdict)) in enumerate(zip(previews, judged, strict=True), RESTOREE)
        ]
        replica = Replicas(self._destination, members, tree, as_init, bool(self.images[0].ipc))
        more, differences = replica.judge(self.images)
        if problems or lacking or more:
            raise Refused([*lacking, *problems, *more])
        if facts.offsets is None or inside.no_clocks:
            self.display.warn("CLOCK_MONOTONIC of the process jumps, and what it waits for by that clock")
        for warning in [*warnings, *differences]:
            self.display.warn(warning)
        return facts, inside, replica

    async def _output(self, previews: Sequence[Preview]) -> str | None:
        """Where the output goes that led to a terminal or another process."""
        if not any(each.streams for each in previews) or self.job.stdio:
            return None
        preview = previews[0]
        comm = "".join(c if c.isalnum() and c.isascii() else "_" for c in preview.comm)
        return await self._destination.stdio_log(f"{comm}-{preview.pid}.log")

    async def _files(self, wanted: tuple[FileNeed, ...]) -> tuple[list[Problem], frozenset[str]]:
        """Files that are not as they were. Also the names of deleted files that are taken by now."""
        there = await self._destination.stat(needs.paths(wanted))
        found = needs.compare(wanted, there, sides=(_NOW, _THEN))
        wrong = {problem.what.split(" ")[0] for problem in found}
        same = sorted({need.path for need in wanted if need.content} - wrong)
        answers = (await self.agent.request("digest", paths=same))["digests"]
        with making_sense(self.agent.name, "what it tells of the contents of files"):
            for path, answer in zip(same, answers, strict=True):
                if answer.get("digest") != self.checkpoint.digests.get(path):
                    where = next(need.where for need in wanted if need.path == path)
                    why = os.strerror(answer["errno"]) if "errno" in answer else "has not the content that it had"
                    found.append(Problem(where, f"{path} {why}", "install the version that it was dumped with"))
        return found, needs.taken(wanted, there)

    def _clocks(self, preview: Preview, facts: Facts) -> Offsets | None:
        """Of the time namespace in which the process's clocks go on; None: those of this host are right, or there are
        no such namespaces."""
        wanted = wanted_offsets(Offsets(*preview.clock_offsets), facts.here, facts.there)
        return wanted if facts.offsets is not None and wanted != facts.offsets else None

    async def _begin(self, preview: Preview) -> None:
        """Its journal, by which `migrate status` knows of it, and from which is learned what became of it."""
        about = {"pid": preview.pid, "comm": preview.comm, "source": self.path}
        await self._destination.begin(self.id, _LEASE, faults.there(), about, log=False)

    # The end

    async def _commit(self, staged: Staged) -> None:
        try:
            await self._destination.commit(staged)
        except NotCommitted:
            raise
        except Failed as error:
            # What became of it is in the journal, whoever was killed.
            async with _agent(self.display) as second:
                told = await second.request("settle", migration=self.id, how=settling.COMMIT)
            if told["outcome"] == settling.ROLLED_BACK:
                raise NotCommitted(f"{error}; nothing of it runs") from error
            if told["outcome"] != settling.MOVED:
                raise InDoubt(f"the restore {self.id} is in doubt ({error}): see migrate status") from error

    async def _abort(self, why: str) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            try:
                await self.agent.request("abort", why=why)
            except Failed:
                return  # it is gone, and all that it made with it; or it was too late, which was told

"""The story of a migration.

    connect → preflight → restoree → rounds → freeze → commit

Everything up to COMMIT can be called off: whatever fails, or when the user interrupts, the process goes on here and
nothing of it is left there. Nothing here blocks, and nothing here traces: that is what the agents are for.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import trio

from agents import journal
from migrate import faults, preflight, verify
from migrate.destination import RESTOREE, Destination, Facts, Staged
from migrate.ending import LEASE, Ending
from migrate.engine import kin, overseer, restore
from migrate.engine.image.codec import decode
from migrate.engine.kinds.locks import Held
from migrate.engine.memory.layout import choose_hole, collides, ranges
from migrate.engine.preview import Layout, Preview
from migrate.engine.process import ProcessImage
from migrate.engine.program.listing import listing
from migrate.engine.wire import Reader
from migrate.errors import Failed, InDoubt, MigrateError, NumberTaken, Refused
from migrate.ledger import Ledger
from migrate.links import Relay, connected, watching
from migrate.options import Options
from migrate.policy import Decision, Limits, PrecopyPolicy
from migrate.progress import Display
from migrate.replica import Replica
from migrate.replicas import Replicas
from migrate.report import Report, Round
from migrate.rescue import Rescue
from migrate.timekeeping import Timekeeping
from migrate.transport.agent import Agent, AgentError, Pending, making_sense, sole

_ATTEMPTS = 4  # to move a tree that others join or leave meanwhile
_SPARE_THREADS = 16  # that the process may start while it is on its way
_VERIFIED = 500e6  # bytes per second that are verified, or more
_WARM = 8  # runs after which the Python interpreter has specialised its code (PEP 659)


async def move(options: Options, display: Display) -> Report:
    """Moves the process. Raises a MigrateError that says why not; then it runs on here."""
    begun = time.monotonic()
    own_numbers = False
    for left in range(_ATTEMPTS, -1, -1):
        try:
            report = await _attempt(options, display, own_numbers)
            break
        except NumberTaken as error:
            # Between our look and the making of it somebody else was given the number, and next time it may be another.
            if own_numbers or not left:
                raise
            display.note(f"{error}: once more, in a PID namespace of its own")
            own_numbers = True
        except AgentError as error:
            if error.kind != "kin" or not left:
                raise
            display.note(f"{error}: once more, with those that there are now")
    return replace(report, total_s=time.monotonic() - begun)


async def _attempt(options: Options, display: Display, own_numbers: bool) -> Report:
    id, interrupted = journal.new_id(), trio.Event()

    async def notice() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            # Not passed on: what is committed by now is to be reported, and all else is cancelled by itself.
            interrupted.set()

    try:
        async with trio.open_nursery() as nursery:
            # While the commit is shielded, somebody has to know that the user does not want to wait.
            nursery.start_soon(notice)
            with trio.CancelScope() as interruptible:
                async with connected(options, display, id) as (rescue, destination, relay):
                    migration = Migration(
                        options, display, rescue, destination, relay, interruptible, id, own_numbers
                    )
                    migration.ending.interrupted = interrupted
                    report = await migration.run()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
    return report


@dataclass
class Migration:
    """A process with its descendants on its way from the source to the destination. Parts of one of them are known by
    its position: parents come first."""

    options: Options
    display: Display
    rescue: Rescue
    destination: Destination
    relay: Relay
    interruptible: trio.CancelScope
    id: str
    own_numbers: bool = False  # in a PID namespace of its own, whether its numbers are taken there or not
    rounds: list[Round] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds
    _readers: list[Reader] = field(default_factory=list)
    _previews: list[Preview] = field(default_factory=list)
    _people: list[list[int]] = field(default_factory=list)  # where there are several: number and time of start of each

    def __post_init__(self) -> None:
        self.ending = Ending(self.options, self.display, self.rescue, self.destination, self.relay)

    async def run(self) -> Report:
        """All of it."""
        try:
            async with watching(self.source, self.destination.agent):
                preview, facts = await self._preflight()
                await self._begin(preview, facts)
                replica = await self._prepare(preview, facts)
                await self._copy(replica)
                downtime = await self._freeze_and_commit(replica)
        except BaseException as error:
            if isinstance(error, MigrateError) and self.ending.ledger is not None:
                error.migration = self.ledger.id
            if not isinstance(error, InDoubt):
                await self.ending.roll_back(str(error) or type(error).__name__)
            raise
        finally:
            if self.ending.ledger is not None:
                self.ledger.close()
        await faults.reach("committed")
        await self.rescue.reap()
        return Report(
            ok=True,
            id=self.id,
            pid=self.options.pid,
            comm=preview.comm,
            dest=self.options.dest,
            new_pid=replica.first.outer_pid,
            downtime_ms=downtime * 1000,
            rounds=tuple(self.rounds),
            bytes_sent=self.relay.bytes,
            tracker=self._tracker,
            vdso=self._vdso,
            phases_ms={name: seconds * 1000 for name, seconds in self.phases.items()},
            stdio_log=replica.first.ground.stdio,
        )

    _tracker = ""
    _vdso = ""
    _clocks: Timekeeping | None = None

    _records: overseer.Records | None = None

    @property
    def source(self) -> Agent:
        return self.rescue.source

    @property
    def ledger(self) -> Ledger:
        assert self.ending.ledger is not None
        return self.ending.ledger

    # Before anything is touched

    async def _preflight(self) -> tuple[Preview, Facts]:
        """What the process is, what the destination is, and every reason why the one does not fit the other."""
        self.display.phase("preflight")
        inspected = await self.source.request("inspect", pid=self.options.pid)
        asked = [await self.source.submit("preview", member=member) for member in range(1, inspected["members"])]
        blobs = [inspected.blob, *[(await each.reply()).blob for each in asked]]
        self._previews = [decode(Preview, blob) for blob in blobs]
        self._readers = [Reader() for _ in blobs]
        preview = self._previews[0]
        facts = await self.destination.facts()
        problems = [problem for each in self._previews for problem in each.problems]
        self._resident = sum(each.resident for each in self._previews)
        problems += preflight.host_problems(
            preview, facts, self.options.no_clock, self._resident - preview.resident
        )
        self._rights = not problems
        for each in self._previews:
            problems += preflight.process_problems(each, facts)
        needed = tuple(need for each in self._previews for need in each.needs)
        files, self._taken = await preflight.file_problems(needed, self.source, self.destination)
        if problems or files:
            raise Refused([*problems, *files])
        await faults.reach("preflight")
        if len(self._previews) > 1:
            self._people = self.rescue.people = (await self.source.request("people"))["people"]
        return preview, facts

    async def _begin(self, preview: Preview, facts: Facts) -> None:
        """From now on there is something to be told of this migration, on both hosts."""
        self.ending.ledger = ledger = await Ledger.begin(self.id, self.options, preview.comm, self._people)
        self.display.id = ledger.id
        self.display.detail(f"this is migration {ledger.id}")
        self._records = ledger.records(facts.there.boot_id)
        lease = float(faults.pretended("lease").partition("=")[2] or max(LEASE, 2 * self.options.reconnect_for))
        about = {"pid": preview.pid, "comm": preview.comm, "source": os.uname().nodename, **faults.padding()}
        log = self.options.log is not None
        path = await self.destination.begin(ledger.id, lease, faults.there(), about, log)
        if path is not None:
            self.display.note(f"the log on {self.destination.name} is {path}")

    async def _prepare(self, preview: Preview, facts: Facts) -> Replicas:
        """Overseer and restoree, empty; the last things that could be refused."""
        previews = self._previews
        tree = [each.kin for each in previews]
        wanted = {tid for each in previews for tid in each.tids} | kin.numbers(tree)
        used = sorted(facts.tids & wanted)
        if used:
            name = self.destination.name
            self.display.note(f"pid {used[0]} is taken on {name}: the process gets a PID namespace of its own there")
        as_init = bool(used) or self.own_numbers
        self._clocks = clocks = Timekeeping(preview, facts)
        inside = await self.destination.start_overseer(as_init, clocks.namespace, len(previews))
        with making_sense(self.destination.agent.name, "its vDSO"):
            judged = [preflight.kernel_problems(each, inside) for each in previews]
        problems = [problem for found, _ in judged for problem in found]
        problems += preflight.clock_problems(inside, self.options.no_clock)
        lacking, warnings = preview.cpu.missing(inside.cpu, self.options.cpu_check)
        if problems or lacking:
            raise Refused([*lacking, *problems])
        for warning in warnings:
            self.display.warn(warning)
        clocks.tell(inside, self.display)
        self._vdso = judged[0][1].decision.value
        for line in judged[0][1].table():
            self.display.detail(line)
        occupied = [*((vma.start, vma.end) for each in previews for vma in each.vmas), *ranges(inside.maps)]
        threads = max(len(each.tids) for each in previews)
        hole = choose_hole(occupied, overseer.hole_size(threads + _SPARE_THREADS))
        ground = restore.Ground(
            hole=hole,
            channels=preflight.channels(previews, facts),
            destination=replace(facts.task, timers_by_id=inside.timers_by_id),
            carrier=preview.cpu.carrier(inside.cpu),
            numbers={},
            stdio=await self._stdio(previews),
            taken=self._taken,
            droppable=inside.droppable,
            member=len(previews) > 1 or bool(preview.kin.zombies),
        )
        members = [
            Replica(self.destination, replace(ground, verdict=verdict), facts.pipe_max_size, each.pid, slot)
            for slot, (each, (_, verdict)) in enumerate(zip(previews, judged, strict=True), RESTOREE)
        ]
        replica = Replicas(self.destination, members, tree, as_init)
        await replica.create(inside.maps, inside.overseer)
        await faults.reach("created")
        return replica

    async def _stdio(self, previews: Sequence[Preview]) -> str | None:
        """Where the output goes that leads to a terminal or a pipe here."""
        wanted, preview = self.options.stdio, previews[0]
        if not any(each.streams for each in previews) or wanted == "null":
            return None
        if wanted is not None:
            return wanted
        comm = "".join(c if c.isalnum() and c.isascii() else "_" for c in preview.comm)
        return await self.destination.stdio_log(f"{comm}-{preview.pid}.log")

    # While it runs

    async def _copy(self, replica: Replicas) -> None:
        """Rounds of pages, until what is left is little enough to stop the process for."""
        options, display = self.options, self.display
        display.phase("copying")
        self.rescue.touched = True
        reply = await self.source.request(
            "track",
            tracker=options.tracker,
            compress=options.compress,
            bandwidth=options.bandwidth,
        )
        self._tracker = str(reply["tracker"])
        for reason in reply["rejected"]:
            display.note(f"dirty pages by {self._tracker}: {reason}")
        await faults.reach("tracked")
        limits = Limits(options.max_downtime, options.max_rounds, options.no_converge)
        policy = PrecopyPolicy(limits)
        pages = await self._look(replica)
        while True:
            display.round_started(len(self.rounds) + 1, pages)
            begun, before = time.monotonic(), self.relay.bytes
            sending = [
                await self.source.submit("send", member=position, remapped=member.take_remade())
                for position, member in enumerate(replica.members)
            ]
            sent = sum([int((await each.reply())["pages"]) for each in sending])
            await self.destination.agent.request("sync")
            await faults.reach("round")
            if not self.rounds:
                await self._rehearse(replica)
                await faults.reach("rehearsed")
            pages = await self._look(replica)
            taken = time.monotonic() - begun
            round = Round(sent, self.relay.bytes - before, taken, pages)
            self.rounds.append(round)
            display.round_finished(round)
            verdict = policy.after(round)
            display.detail(verdict.reason)
            self._expected = verdict.expected_downtime
            if verdict.decision is Decision.GIVE_UP:
                raise Failed(f"{verdict.reason}; allow more with --max-downtime or --no-converge continue")
            if verdict.decision is Decision.FREEZE:
                return

    async def _look(self, replica: Replicas) -> int:
        """Make the destination's layout that of the process; the number of pages to send."""
        looking = [await self.source.submit("look", member=member) for member in range(len(replica.members))]
        replies = [await each.reply() for each in looking]
        await replica.lay_out([reply.blob for reply in replies])
        return sum(int(reply["pages"]) for reply in replies)

    _halting = True
    _stopped: frozenset[int] = frozenset()

    def _standing_still(self, images: Sequence[ProcessImage]) -> frozenset[int]:
        """Of several, those that need not be halted, as they are numbered here."""
        pids = zip(self._pids, images, strict=True) if len(images) > 1 else ()
        return frozenset(pid for pid, image in pids if image.process.stopped)

    async def _rehearse(self, replica: Replicas) -> None:
        """The freeze, but for its end: refusals that show only from inside come now, and all paths are warm."""
        self.display.detail("rehearsal")
        rehearsed = (await self.source.request("rehearse")).blob
        image = self._readers[0].read(rehearsed)
        images = [image, *(each for each, _ in await self._others())]
        problems, warnings = replica.judge(images)
        if problems:
            raise Refused(problems)
        for warning in warnings:
            self.display.warn(warning)
        for _ in range(_WARM):
            restore.Compiler().programs(Reader().read(rehearsed), replica.first.ground)
        compiled = replica.compile(images)
        if self.options.verbose >= 2:
            for _, linked in compiled:
                for line in listing(linked).splitlines():
                    self.display.detail(line)
        assert self._records is not None
        replica.releasing(images, self._records)
        self._halting = any(not each.process.stopped for each in images)
        self._stopped = self._standing_still(images)

    async def _others(self) -> list[tuple[ProcessImage, bool]]:
        """The images of all but the first as they were collected last, and whether their layout has changed."""
        asked = [await self.source.submit("image", member=member) for member in range(1, len(self._readers))]
        replies = [await each.reply() for each in asked]
        return [
            (reader.read(reply.blob), bool(reply["changed"]))
            for reader, reply in zip(self._readers[1:], replies, strict=True)
        ]

    # The freeze

    async def _freeze_and_commit(self, replica: Replicas) -> float:
        """Stop it here, finish it there, and let go of one of the two. The downtime in seconds."""
        self.display.phase("freezing")
        # That COMMIT may be sent must be on the disk before it is; the disk takes its time, which is not to be spent
        # while the process stands still.
        await self.ledger.intend(self._halting, self._stopped)
        self.display.suspend()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            assert self._clocks is not None
            still = await self._clocks.behind(self.destination, self.options.max_downtime)
            with trio.fail_after(self._patience):
                begun = await self._freeze(replica, still)
                await faults.reach("before-commit")
                # From here on an end of the agent leaves the process stopped, not running.
                await self.source.request("commit")
                await faults.reach("halted")
            # Nothing stops us from here on: neither the user, who is told how it went, nor the loss of an agent.
            self.interruptible.shield = True
            with trio.CancelScope(shield=True):
                assert self._staged is not None
                sent = time.monotonic()
                done = await self.ending.commit(self._staged, self._patience)
                self.phases["commit"] = done - sent
            return done - begun
        except trio.TooSlowError:
            self.ending.silent = True
            seconds = f"{self._patience:g} s"
            raise Failed(f"{self.destination.name} did not answer within {seconds}; the process runs on here") from None
        finally:
            gc.enable()
            gc.unfreeze()
            self.display.resume()

    async def _freeze(self, replica: Replicas, still: float) -> float:
        """``still``: how long it stands still at least."""
        reply = await self.source.request("freeze")
        begun = float(reply["begun"])
        self.phases = {name: float(reply[name]) for name in ("stop", "vdso", "collect")}
        sending: list[Pending | None] = [None] * len(replica.members)
        if not reply["changed"]:  # mostly; then the source looks for the last pages while we compile
            sending[0] = await self._send_last(replica, 0)
        images = [self._readers[0].read(reply.blob)]
        await faults.reach("frozen")
        for position, (image, changed) in enumerate(await self._others(), 1):
            if not changed:
                sending[position] = await self._send_last(replica, position)
            images.append(image)
        if any(collides(replica.first.ground.hole, ((vma.start, vma.end) for vma in i.vmas)) for i in images):
            raise Failed("the process has come to use the memory that the restorer lives in; try again")
        self.rescue.halted = any(not image.process.stopped for image in images)
        self.rescue.stopped = self._standing_still(images)
        for position, (member, image) in enumerate(zip(replica.members, images, strict=True)):
            if sending[position] is None:
                replica.borrow(member, image.vmas)
                await member.follow(image.vmas, ())
                sending[position] = await self._send_last(replica, position)
        self.ledger.will_halt(self.rescue.halted, self.rescue.stopped)
        await self._finish(replica, images, [each for each in sending if each is not None], begun, still)
        return begun

    async def _send_last(self, replica: Replicas, position: int) -> Pending:
        remade = replica.members[position].take_remade()
        return await self.source.submit("send_last", member=position, remapped=remade)

    async def _finish(
        self, replica: Replicas, images: list[ProcessImage], sending: list[Pending], begun: float, still: float
    ) -> None:
        """Up to PREPARED."""
        assert self._records is not None
        programs = await replica.stage(images, self._records)
        held = {person: Held(image.descriptors.locks) for person, image in zip(self._pids, images, strict=True)}
        if any(each.locks for each in held.values()):
            self.rescue.locks = held
            self.ledger.locks(held)
            await self.source.request("unlock")
        scanned, again = 0.0, False
        for position, pending in enumerate(sending):
            last = await pending.reply()
            if last["again"]:
                again = True
                layout = decode(Layout, last.blob)
                images[position] = replace(images[position], vmas=layout.vmas)
                replica.borrow(replica.members[position], layout.vmas)
                await replica.members[position].follow(layout.vmas, layout.fill)
                last = await (await self._send_last(replica, position)).reply()
            scanned += float(last["scan"])
        if again:
            programs = await replica.stage(images, self._records)
        sent = time.monotonic()
        await faults.reach("sent")
        self.rescue.prepared = True
        await replica.finish(programs)
        await trio.sleep_until(trio.current_time() + begun + still - time.monotonic())
        self._staged = programs
        await faults.reach("restored")
        self.phases["scan"] = scanned
        self.phases["send"] = sent - begun - sum(self.phases.values())
        self.phases["restore"] = time.monotonic() - sent
        if self.options.verify:
            for position, image in enumerate(images):
                await self._verify(self._pids[position], replica.members[position].outer_pid, image)

    @property
    def _pids(self) -> list[int]:
        """Of all, as they are numbered here."""
        return [pid for pid, _ in self._people] or [self.options.pid]

    async def _verify(self, pid: int, there_pid: int, image: ProcessImage) -> None:
        """Page by page, while both stand still."""
        begun = time.monotonic()
        name = self.destination.name
        here = verify.Side(self.source, pid)
        there = verify.Side(self.destination.agent, there_pid)
        same, hidden = await verify.compare(here, there, image, f"on {name}")
        self.phases["verify"] = self.phases.get("verify", 0.0) + time.monotonic() - begun
        self.display.detail(f"verified {same:,} pages")
        if hidden:
            self.display.warn(f"{hidden:,} pages that the kernel of {name} shows to nobody were not verified")

    _staged: Staged | None = None
    _expected = 0.0
    _resident = 0

    @property
    def _patience(self) -> float:
        """Seconds that the process is kept stopped at most before it is called off: ten times what was allowed, or
        expected where more is; and what TCP needs to get over a few lost packets, its timeouts doubling from 0.2 s."""
        verifying = self._resident / _VERIFIED if self.options.verify else 0
        return 5 + 10 * (max(self.options.max_downtime, self._expected) + verifying)

"""The story of a migration.

    connect → preflight → restoree → rounds → freeze → commit

Everything up to COMMIT can be called off: whatever fails, or when the user interrupts, the process goes on here and
nothing of it is left there. Nothing here blocks, and nothing here traces: that is what the agents are for.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass, field, replace

import trio

from agents import journal
from migrate import faults, preflight, verify
from migrate.destination import Destination, Facts, Staged
from migrate.ending import LEASE, Ending
from migrate.engine import overseer, restore
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
from migrate.report import Report, Round
from migrate.rescue import Rescue
from migrate.timekeeping import Timekeeping
from migrate.transport.agent import Agent, Pending, making_sense, sole

_SPARE_THREADS = 16  # that the process may start while it is on its way
_VERIFIED = 500e6  # bytes per second that are verified, or more
_WARM = 8  # runs after which the Python interpreter has specialised its code (PEP 659)


async def move(options: Options, display: Display) -> Report:
    """Moves the process. Raises a MigrateError that says why not; then it runs on here."""
    begun = time.monotonic()
    try:
        report = await _attempt(options, display, own_numbers=False)
    except NumberTaken as error:
        # Between our look and the making of it somebody else was given the number, and next time it may be another.
        display.note(f"{error}: once more, in a PID namespace of its own")
        report = await _attempt(options, display, own_numbers=True)
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
    """One process on its way from the source to the destination."""

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
    _reader: Reader = field(default_factory=Reader)

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
            new_pid=replica.outer_pid,
            downtime_ms=downtime * 1000,
            rounds=tuple(self.rounds),
            bytes_sent=self.relay.bytes,
            tracker=self._tracker,
            vdso=self._vdso,
            phases_ms={name: seconds * 1000 for name, seconds in self.phases.items()},
            stdio_log=replica.ground.stdio,
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
        preview = decode(Preview, (await self.source.request("inspect", pid=self.options.pid)).blob)
        facts = await self.destination.facts()
        problems = [*preview.problems, *preflight.host_problems(preview, facts, self.options.no_clock)]
        self._rights = not problems
        problems += preflight.process_problems(preview, facts)
        files, self._taken = await preflight.file_problems(preview, self.source, self.destination)
        if problems or files:
            raise Refused([*problems, *files])
        await faults.reach("preflight")
        self._resident = preview.resident
        return preview, facts

    async def _begin(self, preview: Preview, facts: Facts) -> None:
        """From now on there is something to be told of this migration, on both hosts."""
        self.ending.ledger = ledger = await Ledger.begin(self.id, self.options, preview.comm)
        self.display.id = ledger.id
        self.display.detail(f"this is migration {ledger.id}")
        self._records = ledger.records(facts.there.boot_id)
        lease = float(faults.pretended("lease").partition("=")[2] or max(LEASE, 2 * self.options.reconnect_for))
        about = {"pid": preview.pid, "comm": preview.comm, "source": os.uname().nodename, **faults.padding()}
        log = self.options.log is not None
        path = await self.destination.begin(ledger.id, lease, faults.there(), about, log)
        if path is not None:
            self.display.note(f"the log on {self.destination.name} is {path}")

    async def _prepare(self, preview: Preview, facts: Facts) -> Replica:
        """Overseer and restoree, empty; the last things that could be refused."""
        used = sorted(facts.tids.intersection(preview.tids))
        if used:
            name = self.destination.name
            self.display.note(f"pid {used[0]} is taken on {name}: the process gets a PID namespace of its own there")
        as_init = bool(used) or self.own_numbers
        self._clocks = clocks = Timekeeping(preview, facts)
        inside = await self.destination.start_overseer(as_init, clocks.namespace)
        with making_sense(self.destination.agent.name, "its vDSO"):
            problems, verdict = preflight.kernel_problems(preview, inside)
        problems += preflight.clock_problems(inside, self.options.no_clock)
        lacking, warnings = preview.cpu.missing(inside.cpu, self.options.cpu_check)
        if problems or lacking:
            raise Refused([*lacking, *problems])
        for warning in warnings:
            self.display.warn(warning)
        clocks.tell(inside, self.display)
        self._vdso = verdict.decision.value
        for line in verdict.table():
            self.display.detail(line)
        occupied = [*((vma.start, vma.end) for vma in preview.vmas), *ranges(inside.maps)]
        hole = choose_hole(occupied, overseer.hole_size(len(preview.tids) + _SPARE_THREADS))
        ground = restore.Ground(
            hole=hole,
            channels=preflight.channels(preview, facts),
            destination=replace(facts.task, timers_by_id=inside.timers_by_id),
            carrier=preview.cpu.carrier(inside.cpu),
            numbers={},
            stdio=await self._stdio(preview),
            taken=self._taken,
            verdict=verdict,
            droppable=inside.droppable,
        )
        replica = Replica(self.destination, ground, as_init=as_init, pipe_max_size=facts.pipe_max_size)
        await replica.create(preview.pid, inside.maps, inside.overseer)
        await faults.reach("created")
        return replica

    async def _stdio(self, preview: Preview) -> str | None:
        """Where the output goes that leads to a terminal or a pipe here."""
        wanted = self.options.stdio
        if not preview.streams or wanted == "null":
            return None
        if wanted is not None:
            return wanted
        comm = "".join(c if c.isalnum() and c.isascii() else "_" for c in preview.comm)
        return await self.destination.stdio_log(f"{comm}-{preview.pid}.log")

    # While it runs

    async def _copy(self, replica: Replica) -> None:
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
            sent = await self.source.request("send", remapped=replica.take_remade())
            await self.destination.agent.request("sync")
            await faults.reach("round")
            if not self.rounds:
                await self._rehearse(replica)
                await faults.reach("rehearsed")
            pages = await self._look(replica)
            taken = time.monotonic() - begun
            round = Round(int(sent["pages"]), self.relay.bytes - before, taken, pages)
            self.rounds.append(round)
            display.round_finished(round)
            verdict = policy.after(round)
            display.detail(verdict.reason)
            self._expected = verdict.expected_downtime
            if verdict.decision is Decision.GIVE_UP:
                raise Failed(f"{verdict.reason}; allow more with --max-downtime or --no-converge continue")
            if verdict.decision is Decision.FREEZE:
                return

    async def _look(self, replica: Replica) -> int:
        """Make the destination's layout that of the process; the number of pages to send."""
        reply = await self.source.request("look")
        await replica.lay_out(reply.blob)
        return int(reply["pages"])

    _halting = True

    async def _rehearse(self, replica: Replica) -> None:
        """The freeze, but for its end: refusals that show only from inside come now, and all paths are warm."""
        self.display.detail("rehearsal")
        rehearsed = (await self.source.request("rehearse")).blob
        image = self._reader.read(rehearsed)
        problems, warnings = replica.judge(image)
        if problems:
            raise Refused(problems)
        for warning in warnings:
            self.display.warn(warning)
        for _ in range(_WARM):
            restore.Compiler().programs(Reader().read(rehearsed), replica.ground)
        compiled = replica.compile(image)
        if self.options.verbose >= 2:
            for _, linked in compiled:
                for line in listing(linked).splitlines():
                    self.display.detail(line)
        assert self._records is not None
        replica.releasing(image, self._records)
        self._halting = not image.process.stopped

    # The freeze

    async def _freeze_and_commit(self, replica: Replica) -> float:
        """Stop it here, finish it there, and let go of one of the two. The downtime in seconds."""
        self.display.phase("freezing")
        # That COMMIT may be sent must be on the disk before it is; the disk takes its time, which is not to be spent
        # while the process stands still.
        await self.ledger.intend(self._halting)
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

    async def _freeze(self, replica: Replica, still: float) -> float:
        """``still``: how long it stands still at least."""
        reply = await self.source.request("freeze")
        begun = float(reply["begun"])
        self.phases = {name: float(reply[name]) for name in ("stop", "vdso", "collect")}
        sending = None
        if not reply["changed"]:  # mostly; then the source looks for the last pages while we compile
            sending = await self.source.submit("send_last", remapped=replica.take_remade())
        image = self._reader.read(reply.blob)
        await faults.reach("frozen")
        if collides(replica.ground.hole, ((vma.start, vma.end) for vma in image.vmas)):
            raise Failed("the process has come to use the memory that the restorer lives in; try again")
        self.rescue.halted = not image.process.stopped
        if sending is None:
            await replica.follow(image.vmas, ())
            sending = await self.source.submit("send_last", remapped=replica.take_remade())
        self.ledger.will_halt(self.rescue.halted)
        await self._finish(replica, image, sending, begun, still)
        return begun

    async def _finish(
        self, replica: Replica, image: ProcessImage, sending: Pending, begun: float, still: float
    ) -> None:
        """Up to PREPARED."""
        assert self._records is not None
        programs = await replica.stage(image, self._records)
        if image.descriptors.locks:
            self.rescue.locks = Held(image.descriptors.locks)
            self.ledger.locks(self.rescue.locks)
            await self.source.request("unlock")
        last = await sending.reply()
        if last["again"]:
            layout = decode(Layout, last.blob)
            image = replace(image, vmas=layout.vmas)
            await replica.follow(layout.vmas, layout.fill)
            sending = await self.source.submit("send_last", remapped=replica.take_remade())
            programs = await replica.stage(image, self._records)
            last = await sending.reply()
        sent = time.monotonic()
        await faults.reach("sent")
        self.rescue.prepared = True
        await replica.finish(programs)
        await trio.sleep_until(trio.current_time() + begun + still - time.monotonic())
        self._staged = programs
        await faults.reach("restored")
        self.phases["scan"] = float(last["scan"])
        self.phases["send"] = sent - begun - sum(self.phases.values())
        self.phases["restore"] = time.monotonic() - sent
        if self.options.verify:
            await self._verify(replica, image)

    async def _verify(self, replica: Replica, image: ProcessImage) -> None:
        """Page by page, while both stand still."""
        begun = time.monotonic()
        name = self.destination.name
        here = verify.Side(self.source, self.options.pid)
        there = verify.Side(self.destination.agent, replica.outer_pid)
        same, hidden = await verify.compare(here, there, image, f"on {name}")
        self.phases["verify"] = time.monotonic() - begun
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

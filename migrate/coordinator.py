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
from functools import partial

import trio

from agents import journal
from migrate import faults
from migrate.destination import Destination, Facts
from migrate.ending import LEASE, Ending
from migrate.engine import overseer, restore
from migrate.engine.preview import Preview
from migrate.engine.program.listing import listing
from migrate.engine.wire import Reader
from migrate.errors import Failed, InDoubt, KinChanged, MigrateError, NoRoomToFork, NumberTaken, Refused
from migrate.following import Following
from migrate.freeze import Freeze
from migrate.ledger import Ledger
from migrate.links import Relay, connected, watching
from migrate.options import Options
from migrate.originals import Originals
from migrate.policy import Decision, Limits, PrecopyPolicy
from migrate.preparation import Preparation
from migrate.progress import Display
from migrate.replicas import Replicas
from migrate.report import Report, Round
from migrate.rescue import Rescue
from migrate.transport.agent import AgentError, sole

_ATTEMPTS = 4  # to move a tree that others join or leave meanwhile
_VERIFIED = 500e6  # bytes per second that are verified, or more
_WARM = 8  # runs after which the Python interpreter has specialised its code (PEP 659)


async def move(options: Options, display: Display) -> Report:
    """Moves the process. Raises a MigrateError that says why not; then it runs on here."""
    begun = time.monotonic()
    own_numbers, share = False, True
    for left in range(_ATTEMPTS, -1, -1):
        try:
            report = await _attempt(options, display, own_numbers, share)
            break
        except NumberTaken as error:
            # Between our look and the making of it somebody else was given the number, and next time it may be another.
            if own_numbers or not left:
                raise
            display.note(f"{error}: once more, in a PID namespace of its own")
            own_numbers = True
        except NoRoomToFork as error:
            if not share or not left:
                raise
            display.note(f"{error}: once more, with memory of its own for each process")
            share = False
        except AgentError as error:
            if error.kind != "kin" or not left:
                raise
            display.note(f"{error}: once more, with those that there are now")
        except KinChanged as error:
            if not left:
                raise
            display.note(f"{error}: once more, with those that there are now")
    return replace(report, total_s=time.monotonic() - begun)


async def _attempt(options: Options, display: Display, own_numbers: bool, share: bool) -> Report:
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
                        options, display, rescue, destination, relay, interruptible, id, own_numbers, share
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
    share: bool = True  # there what is shared here by copy on write
    rounds: list[Round] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds

    def __post_init__(self) -> None:
        self.originals = Originals(self.rescue, self.options.pid)
        self.preparation = Preparation(
            self.options, self.display, self.originals, self.destination, self.own_numbers
        )
        self.ending = Ending(self.options, self.display, self.rescue, self.destination, self.relay)

    async def run(self) -> Report:
        """All of it."""
        try:
            async with watching(self.originals.source, self.destination.agent):
                await self.preparation.preflight()
                preview, facts = self.preparation.preview, self.preparation.facts
                await self._begin(preview, facts)
                replica = await self.preparation.replicas()
                self._following = self.preparation.following(self.ledger, replica)
                await faults.reach("created")
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
            processes=len(replica.members),
            downtime_ms=downtime * 1000,
            rounds=tuple(self.rounds),
            bytes_sent=self.relay.bytes,
            tracker=self._tracker,
            vdso=self.preparation.vdso,
            phases_ms={name: seconds * 1000 for name, seconds in self.phases.items()},
            stdio_log=replica.first.ground.stdio,
        )

    _tracker = ""
    _records: overseer.Records | None = None
    _following: Following | None = None

    @property
    def following(self) -> Following:
        """Of those that come and go, once there are replicas."""
        assert self._following is not None
        return self._following

    @property
    def ledger(self) -> Ledger:
        assert self.ending.ledger is not None
        return self.ending.ledger

    # Before anything is touched

    async def _begin(self, preview: Preview, facts: Facts) -> None:
        """From now on there is something to be told of this migration, on both hosts."""
        self.ending.ledger = ledger = await Ledger.begin(self.id, self.options, preview.comm, self.originals.people)
        self.display.id = ledger.id
        self.display.detail(f"this is migration {ledger.id}")
        self._records = ledger.records(facts.there.boot_id)
        lease = float(faults.pretended("lease").partition("=")[2] or max(LEASE, 2 * self.options.reconnect_for))
        about = {"pid": preview.pid, "comm": preview.comm, "source": os.uname().nodename, **faults.padding()}
        log = self.options.log is not None
        path = await self.destination.begin(ledger.id, lease, faults.there(), about, log)
        if path is not None:
            self.display.note(f"the log on {self.destination.name} is {path}")

    # While it runs

    async def _copy(self, replica: Replicas) -> None:
        """Rounds of pages, until what is left is little enough to stop the process for."""
        options, display = self.options, self.display
        display.phase("copying")
        self._tracker, rejected = await self.originals.track(
            options.tracker, options.compress, options.bandwidth
        )
        for reason in rejected:
            display.note(f"dirty pages by {self._tracker}: {reason}")
        if replica.first.ground.member:
            await self.following.follow(look=False)
        await faults.reach("tracked")
        limits = Limits(options.max_downtime, options.max_rounds, options.no_converge)
        policy = PrecopyPolicy(limits)
        pages = await self.originals.look_first(replica, self.share)
        while True:
            display.round_started(len(self.rounds) + 1, pages)
            begun, before, self.originals.sending = time.monotonic(), self.relay.bytes, 0.0
            if self.rounds or not self.share:
                sent = await self.originals.send(replica)
            else:
                sent = await self.originals.send_first(replica, partial(display.round_started, 1))
            sent_by = time.monotonic()
            await self.destination.agent.request("sync")
            sending = self.originals.sending + time.monotonic() - sent_by
            await faults.reach("round")
            if not self.rounds:
                await self._rehearse(replica)
                await faults.reach("rehearsed")
            if replica.first.ground.member:
                await self.following.follow(look=True)
            pages = await self.originals.look(replica)
            taken = time.monotonic() - begun
            round = Round(sent, self.relay.bytes - before, taken, pages)
            self.rounds.append(round)
            display.round_finished(round)
            verdict = policy.after(round, sending)
            display.detail(verdict.reason)
            self._expected = verdict.expected_downtime
            if verdict.decision is Decision.GIVE_UP:
                raise Failed(f"{verdict.reason}; allow more with --max-downtime or --no-converge continue")
            if verdict.decision is Decision.FREEZE:
                return

    async def _rehearse(self, replica: Replicas) -> None:
        """The freeze, but for its end: refusals that show only from inside come now, and all paths are warm."""
        self.display.detail("rehearsal")
        changed, rehearsed = await self.originals.rehearse()
        if changed:
            await self.following.follow(look=False)
        images = await self.originals.images(rehearsed)
        for member, image in zip(replica.members, images, strict=True):
            replica.borrow(member, image.vmas)
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

    # The freeze

    async def _freeze_and_commit(self, replica: Replicas) -> float:
        """Stop it here, finish it there, and let go of one of the two. The downtime in seconds."""
        self.display.phase("freezing")
        # That COMMIT may be sent must be on the disk before it is; the disk takes its time, which is not to be spent
        # while the process stands still.
        await self.ledger.intend(self.originals.halting, self.originals.stopped)
        self.display.suspend()
        gc.collect()
        gc.freeze()
        gc.disable()
        assert self._records is not None
        freeze = Freeze(
            self.options,
            self.display,
            self.rescue,
            self.ledger,
            self.originals,
            replica,
            self.following,
            self._records,
            self.phases,
        )
        try:
            still = await self.preparation.clocks.behind(self.destination, self.options.max_downtime)
            with trio.fail_after(self._patience):
                staged = await freeze.run(still)
                await faults.reach("before-commit")
                # From here on an end of the agent leaves the process stopped, not running.
                await self.originals.source.request("commit")
                await faults.reach("halted")
            # Nothing stops us from here on: neither the user, who is told how it went, nor the loss of an agent.
            self.interruptible.shield = True
            with trio.CancelScope(shield=True):
                sent = time.monotonic()
                done = await self.ending.commit(staged, self._patience)
                self.phases["commit"] = done - sent
            return done - freeze.begun
        except trio.TooSlowError:
            self.ending.silent = True
            seconds = f"{self._patience:g} s"
            raise Failed(f"{self.destination.name} did not answer within {seconds}; the process runs on here") from None
        finally:
            gc.enable()
            gc.unfreeze()
            self.display.resume()

    _expected = 0.0

    @property
    def _patience(self) -> float:
        """Seconds that the process is kept stopped at most before it is called off: ten times what was allowed, or
        expected where more is; and what TCP needs to get over a few lost packets, its timeouts doubling from 0.2 s."""
        verifying = self.originals.resident / _VERIFIED if self.options.verify else 0
        return 5 + 10 * (max(self.options.max_downtime, self._expected) + verifying)

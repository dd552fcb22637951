"""How a migration ends: committed, rolled back, or in doubt."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import trio

from agents import settling
from migrate import faults
from migrate.destination import Destination, Staged
from migrate.doubt import Outcome, ask, ask_again
from migrate.errors import Failed, InDoubt, MigrateError, NotCommitted, Refused
from migrate.ledger import Ledger
from migrate.links import Relay
from migrate.options import Options
from migrate.progress import Display
from migrate.rescue import Rescue
from migrate.transport.agent import AgentError, sole

LEASE = 120.0  # seconds that a prepared destination waits for a word, at least
_LOCKS = 5.0  # seconds to get back what the restoree may hold, with the process stopped
_ABORT = 10.0  # seconds for the destination to end what there is of the process: large memory takes its time


@dataclass
class Ending:
    """Of one migration. ``ledger``: its journal, once it has one; ``silent``: the destination does not answer;
    ``interrupted``: the user does not want to wait any longer."""

    options: Options
    display: Display
    rescue: Rescue
    destination: Destination
    relay: Relay
    ledger: Ledger | None = None
    silent: bool = False
    interrupted: trio.Event = field(default_factory=trio.Event)
    _told: bool = False  # the destination knows already

    @property
    def id(self) -> str:
        """For sentences."""
        return self.ledger.id if self.ledger is not None else "(none)"

    async def commit(self, staged: Staged, patience: float) -> float:
        """The point of no return; ``patience`` in seconds. The time at which the process is known to run there."""
        self.display.committing = True
        try:
            with trio.fail_after(patience):
                await self.destination.commit(staged)
        except NotCommitted:
            self.display.committing = False
            raise
        except (Failed, trio.TooSlowError) as error:
            self.silent = True
            await self._find_out(str(error) or f"nothing was heard for {patience:g} s")
        done = time.monotonic()
        await faults.reach("acknowledged")
        # Whatever goes wrong from here on, nothing is rolled back: it would run twice.
        try:
            await self.rescue.end()
        except (Failed, Refused) as error:
            raise InDoubt(
                f"the process runs on {self.destination.name}, and the copy here, process {self.options.pid}, could "
                f"not be ended ({error}); it is stopped: run migrate recover {self.id}"
            ) from error
        await faults.reach("ended")
        try:
            assert self.ledger is not None
            await self.ledger.done()
        except Failed as error:
            self.display.warn(str(error))
        return done

    async def _find_out(self, why: str) -> None:
        """Ask until it is known whether it runs there: returns when it does. Raises NotCommitted or InDoubt."""
        name, id = self.destination.name, self.id
        self.display.resume()
        self.display.warn(f"COMMIT was sent to {name} and no answer came ({why}); the process stays stopped")
        self.display.phase("reconnecting", self.options.dest)
        outcome = await self._asked()
        if outcome.what == settling.ROLLED_BACK:
            self._told, self.display.committing = True, False
            raise NotCommitted(f"{name} did not let the process go: {outcome.why}")
        if outcome.what != settling.MOVED:
            raise InDoubt(
                f"migration {id} is in doubt: COMMIT was sent to {name}, and what became of it could not be learned "
                f"({outcome.why or outcome.what}). The copy here, process {self.options.pid}, stays stopped until that "
                f"is known: run migrate recover {id}"
            )
        if outcome.why:
            self.display.warn(f"{name}: {outcome.why}")

    async def _asked(self) -> Outcome:
        """For as long as the user wants; who interrupts before that has begun still gets one answer."""
        options = self.options
        seconds = 0.0 if self.interrupted.is_set() else options.reconnect_for
        outcome = Outcome(settling.UNKNOWN, "interrupted")

        async def give_up(scope: trio.CancelScope) -> None:
            await self.interrupted.wait()
            scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                if seconds:
                    nursery.start_soon(give_up, nursery.cancel_scope)
                outcome = await ask_again(options.connection, self.display, self.id, settling.COMMIT, seconds)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole(group) from None
        return outcome

    async def roll_back(self, why: str) -> None:
        """Both sides are told; neither may stand in the way of the other."""
        free = True

        async def let_go() -> None:
            nonlocal free
            free = await self.rescue.let_go()

        with trio.CancelScope(shield=True):
            if self._waits and any(held.locks for held in self.rescue.locks.values()):
                # On a file system that both hosts share the one there has the locks, until it is gone.
                with trio.move_on_after(_LOCKS):
                    await self._call_off()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.relay.stop)
                nursery.start_soon(let_go)
                nursery.start_soon(self._abort, why)
            if self.ledger is not None and free:
                try:
                    self.ledger.rolled_back(why)
                except Failed as error:
                    self.display.warn(str(error))
            if self._waits:
                await self._call_off()

    @property
    def _waits(self) -> bool:
        """Whether the destination may be prepared, with nobody to tell it what to do."""
        return self.rescue.prepared and not self._told and (self.destination.agent.lost or self.silent)

    async def _call_off(self) -> None:
        """The destination would wait for its lease: it is told over a new connection."""
        with trio.move_on_after(_ABORT):
            try:
                outcome = await ask(self.options.connection, self.display, self.id, settling.ABORT)
                self._told = outcome.what == settling.ROLLED_BACK
            except MigrateError as error:
                self.display.detail(f"{self.destination.name} could not be told: {error}")
        if not self._told:
            self.display.note(f"what is left of it on {self.destination.name} ends by itself after {LEASE:g} s")

    async def _abort(self, why: str) -> None:
        """Nothing is left there. A destination that is gone ends the restoree by itself, at the end of its connection
        or when it has heard nothing for a while."""
        with trio.move_on_after(0 if self.silent else _ABORT):
            try:
                await self.destination.agent.request("abort", why=why)
            except AgentError as error:
                self.display.warn(str(error))
            except Failed:
                return

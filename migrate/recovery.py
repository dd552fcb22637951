"""A migration whose coordinator is dead is settled: the process runs on exactly one side afterwards."""

from __future__ import annotations

import os
from typing import Any

import trio

from agents import journal, settling
from agents.journal import DONE, INTENT, LOCKS, ROLLED_BACK, Journal, Record
from agents.settling import BROKEN_OFF, GONE, IN_DOUBT, MOVED, PREPARED
from migrate.askpass import prompt
from migrate.doubt import Outcome, ask
from migrate.errors import Failed, InDoubt, MigrateError, Refused
from migrate.options import Connection
from migrate.progress import Display
from migrate.rescue import second_agent
from migrate.source_agent import words_for

_PATIENCE = 5.0  # seconds for another tracer to go
_NAP = 0.1

OPEN = (IN_DOUBT, BROKEN_OFF)
"""What there is something to be done about."""


async def recover(record: Journal, force: str | None, display: Display) -> tuple[str, str]:
    """The journal is ours. What became of the migration, and a sentence. Raises InDoubt when that cannot be learned,
    and is not forced either."""
    records = record.records()
    outcome, _ = settling.judge_source(records)
    if not records or outcome not in OPEN:
        return outcome, f"migration {record.id}: {outcome}, and nothing is to be done"
    facts: dict[str, Any] = {}
    for each in records:
        facts.update(each.fields)
    if facts["host"] != os.uname().nodename:
        raise MigrateError(f"migration {record.id} is of {facts['host']}, which shares this directory: go there")
    copy = Copy(facts, records, asks=prompt(display) is not None)
    if outcome == BROKEN_OFF:  # COMMIT was never sent: it cannot run there, ever
        return await _back(record, copy, "it had been broken off before the commit")
    found = await _learned(record, copy, force, display)
    if found.what == MOVED:
        await copy.end()
        record.mend()
        record.append(DONE)
        as_pid = f" as pid {found.pid}" if found.pid else ""
        why = f" ({found.why})" if found.why else ""
        return MOVED, f"migration {record.id}: moved to {facts['dest']}{as_pid}{why}; the copy here is gone"
    return await _back(record, copy, found.why or f"{facts['dest']} did not let it go")


async def _back(record: Journal, copy: Copy, why: str) -> tuple[str, str]:
    lived = await copy.let_go()
    record.mend()
    record.append(ROLLED_BACK, why=why)
    rest = "runs on here" if lived else "had ended here"
    return settling.ROLLED_BACK, f"migration {record.id}: rolled back ({why}); {copy.who} {rest}"


async def _learned(record: Journal, copy: Copy, force: str | None, display: Display) -> Outcome:
    """Of the destination, or of who forces it.

    One that is prepared there is not needed while the copy here is whole; but it is the last one when that is gone."""
    how = settling.ABORT if copy.lives() and force != "commit" else settling.COMMIT
    if force:
        how = settling.FORCE_COMMIT if force == "commit" else settling.FORCE_ABORT
    if force == "commit" and copy.lives() and not await copy.stands_still():
        raise InDoubt(f"migration {record.id}: {copy.who} runs here: --commit would make it run twice")
    try:
        found = await ask(copy.connection, display, record.id, how)
    except Refused:
        raise
    except MigrateError as error:
        found = Outcome(settling.UNKNOWN, str(error))
    if found.what in (MOVED, settling.ROLLED_BACK):
        return found
    if found.what in (settling.UNDER_WAY, PREPARED):
        raise InDoubt(f"migration {record.id} is in doubt: its agent on {copy.connection.dest} is at work; try again")
    dest, id = copy.connection.dest, record.id
    if force == "commit":
        return Outcome(MOVED, f"by --commit; nobody has seen it run on {dest}: {found.why}")
    if force == "abort":
        return Outcome(settling.ROLLED_BACK, f"by --abort; nobody knows whether it runs on {dest} too: {found.why}")
    raise InDoubt(
        f"migration {id} is in doubt: {dest} cannot tell what became of it ({found.why}). Try again when it can. "
        f"If it never will: migrate recover {id} --abort lets {copy.who} go on here, and if it runs on {dest} after "
        f"all, it runs twice; migrate recover {id} --commit ends it here, and if it does not run on {dest}, it is lost"
    )


class Copy:
    """The process as it is on this host, with its number, and where it went."""

    def __init__(self, facts: dict[str, Any], records: list[Record], asks: bool) -> None:
        """``asks``: there is a terminal on which sudo can ask for a password."""
        self._asks = asks
        self._pid, self._start = int(facts["pid"]), int(facts["start"])
        self._booted = records[0].boot == journal.boot_id()
        intents = [bool(each.fields["halted"]) for each in records if each.state == INTENT]
        self._halted = bool(intents) and intents[-1]
        self._stopped: list[int] = facts.get("stopped") or []  # those among several that were so before
        held: str | dict[str, str] = next((each.fields["held"] for each in records if each.state == LOCKS), {})
        by_pid = {self._pid: held} if isinstance(held, str) else held
        self._locks = {int(pid): bytes.fromhex(locks) for pid, locks in by_pid.items()}
        # It, and the descendants that were on their way with it
        self._people: list[list[int]] = facts.get("people") or [[self._pid, self._start]]
        self.who = f"process {self._pid} ({facts['comm']})"
        connection = {name: facts[name] for name in ("dest", "port", "ssh_config", "jump", "sudo")}
        self.connection = Connection(**connection, identities=tuple(facts["identities"]))

    def lives(self) -> bool:
        """Whether it is there, running or not. After a start of the host anew it is not."""
        return bool(self._living())

    def _living(self) -> list[list[int]]:
        return [each for each in self._people if self._booted and settling.fate(*each) != GONE]

    async def stands_still(self) -> bool:
        """Whether it has been stopped, and so has not run since. While an agent of the command that was killed still
        holds it, that is not known yet."""
        deadline = trio.current_time() + _PATIENCE
        while True:
            states = {settling.stat_fields(f"/proc/{pid}/stat")[0] for pid, _ in self._living()}
            if "t" not in states or trio.current_time() > deadline:
                return states == {"T"}
            await trio.sleep(_NAP)

    async def end(self) -> None:
        """The process runs elsewhere."""
        for pid, start in self._living():
            await second_agent(words_for(pid, self._asks), "end", pid=pid, start=start)

    async def let_go(self) -> bool:
        """It goes on; False: it had ended."""
        living = self._living()
        for pid, start in reversed(living):
            await self._cure(pid, start)
        return bool(living)

    async def _cure(self, pid: int, start: int) -> None:
        arguments = {"pid": pid, "start": start, "halted": self._halted and pid not in self._stopped}
        deadline = trio.current_time() + _PATIENCE
        while True:
            try:
                await second_agent(words_for(pid, self._asks), "cure", self._locks.get(pid, b""), **arguments)
                return
            except (Failed, Refused) as error:
                if [pid, start] not in self._living():
                    return
                # The agent of the command that was killed may just be letting it go.
                if isinstance(error, Failed) or trio.current_time() > deadline:
                    raise InDoubt(f"{self.who} could not be let go: {error}") from error
            await trio.sleep(_NAP)

"""The source's journal of one migration: what the coordinator has decided, for who settles it when we are dead."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import trio

from agents import journal, settling
from agents.journal import BEGUN, DONE, INTENT, LOCKS, ROLLED_BACK, SOURCE, Directory, Journal, JournalError
from migrate import faults
from migrate.engine import overseer
from migrate.engine.image.codec import encode
from migrate.engine.kinds.locks import Held
from migrate.errors import Failed, Problem, Refused
from migrate.options import Connection, Options


@dataclass
class Ledger:
    """Its file is locked for as long as this is open: who finds it unlocked knows that the coordinator is dead."""

    id: str
    _journal: Journal
    _directory: Directory
    _intent: tuple[bool, list[int]] | None = None

    @classmethod
    async def begin(cls, id: str, options: Options, comm: str, people: list[list[int]]) -> Ledger:
        """Refused where there is no place for it. ``people``: where several move, number and time of start of each."""
        about = {"pid": options.pid, "comm": comm, "host": os.uname().nodename, **_told(options.connection)}
        about.update(faults.padding())
        if people:
            about["people"] = people
        try:
            start = settling.start_time(options.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise Failed(f"process {options.pid} has ended") from None

        def make() -> Ledger:
            directory = Directory.opened()
            try:
                made = directory.create(id, SOURCE, start=start, **about)
            except BaseException:
                directory.close()
                raise
            return cls(id, made, directory)

        try:
            made = await trio.to_thread.run_sync(make)
        except (OSError, JournalError) as error:
            advice = "make it writable, or set XDG_STATE_HOME to another directory of your own"
            raise Refused([Problem("here", f"no journal can be kept: {error}", advice)]) from error
        await faults.reach("begun")
        return made

    def records(self, boot: str) -> overseer.Records:
        """Of the commit, as the overseer writes them. ``boot``: the destination's boot_id."""
        states = (journal.COMMITTED, journal.RELEASING, journal.RELEASED)
        return overseer.Records(*(journal.line(state, boot) for state in states))

    def locks(self, held: dict[int, Held]) -> None:
        """These are about to be released, by process (not so in the journal, where there is one only). Not for a host
        that crashes: that is the end of the process anyway."""
        found = {str(pid): encode(each).hex() for pid, each in held.items()}
        self._append(LOCKS, held=found if len(found) > 1 else next(iter(found.values())))

    def name(self, people: list[list[int]]) -> None:
        """By now these move."""
        self._append(INTENT if self._intent else BEGUN, people=people)

    async def intend(self, halted: bool, stopped: Collection[int] = ()) -> None:
        """COMMIT may be sent from now on. ``halted``: a SIGSTOP of ours will keep the process from running here, but
        for those of several that are ``stopped`` without that."""
        self.will_halt(halted, stopped)
        try:
            await trio.to_thread.run_sync(os.fdatasync, self._journal.fd, abandon_on_cancel=True)
        except OSError as error:
            raise self._unwritable(error) from error
        await faults.reach("intent")

    def will_halt(self, halted: bool, stopped: Collection[int] = ()) -> None:
        """Of several intents the last one counts. On the disk is what matters after a crash, which ends the copy here
        in any case."""
        intent = halted, sorted(stopped)
        if intent != self._intent:
            self._append(INTENT, halted=halted, **({"stopped": intent[1]} if stopped or self._intent else {}))
            self._intent = intent

    async def done(self) -> None:
        """It runs there, and the copy here was killed. Failed: that could not be written down."""
        try:
            await trio.to_thread.run_sync(self._journal.append, DONE)
        except OSError as error:
            raise self._unwritable(error) from error
        await faults.reach("done")

    def rolled_back(self, why: str) -> None:
        """It runs on here, and nothing is left to be done."""
        try:
            self._journal.append(ROLLED_BACK, why=why)
        except OSError as error:
            raise self._unwritable(error) from error

    def _append(self, state: str, **fields: object) -> None:
        try:
            self._journal.append(state, sync=False, **fields)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Failed:
        return Failed(f"the journal {self._journal.path} cannot be written: {error.strerror}")

    def close(self) -> None:
        """Whoever comes next may settle what is not settled."""
        self._journal.close()
        self._directory.close()


def _told(connection: Connection) -> dict[str, object]:
    """How to get to the destination, from any directory."""
    config = connection.ssh_config
    return {
        "dest": connection.dest,
        "port": connection.port,
        "identities": [_absolute(path) for path in connection.identities],
        "ssh_config": config if config in (None, "none") else _absolute(config),
        "jump": connection.jump,
        "sudo": connection.sudo,
    }


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())

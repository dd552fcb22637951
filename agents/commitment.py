"""What the destination agent has promised about one migration: its journal, and who may ask for it.

From PREPARED on the agent alone decides no more: COMMIT may be on its way. So when its connection ends it waits for a
new one's question, and only when it has heard nothing for its lease does it call all off, in writing first.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

from agents import settling
from agents.journal import ABORTED, BEGUN, DESTINATION, PREPARED, RELEASED, Directory, Journal
from agents.log import Log

_POLL = 0.002  # seconds between two looks whether a hold is over


class Commitment:
    """One migration, as far as it has come. ``state``: BEGUN, PREPARED, RELEASED or ABORTED, and ``why`` that."""

    def __init__(
        self, directory: Directory, record: Journal, door: socket.socket, lease: float, faults: str, log: Log | None
    ) -> None:
        """``lease``: seconds. ``faults``: for tests, as of migrate/faults.py."""
        self.directory, self.record, self.door, self._lease, self._log = directory, record, door, lease, log
        self.state, self.why = BEGUN, ""
        self.program, self.revocable = b"", 0
        self._faults = dict(part.rpartition(":")[::2] for part in faults.split(",") if part)
        self._restoree = 0
        self._people: dict[str, Any] = {}
        self._final = False
        self.heard()

    @classmethod
    def begin(cls, id: str, lease: float, faults: str, about: dict[str, Any], log: bool) -> Commitment:
        """Its journal is made, and a log if there is to be one. OSError, JournalError: it cannot be."""
        directory = Directory.opened()
        try:
            record = directory.create(id, DESTINATION, host=os.uname().nodename, **about)
            try:
                kept = directory.log(id, about.get("pid")) if log else None
                door = settling.listen(directory, id)
            except BaseException:
                record.close()
                raise
        except BaseException:
            directory.close()
            raise
        made = cls(directory, record, door, lease, faults, kept)
        made.log("begun", source=about.get("source"), comm=about.get("comm"))
        made.reach("there-begun")
        return made

    # The log

    def log(self, event: str, **fields: Any) -> None:
        """See agents/log.py."""
        if self._log is not None:
            self._log.write(event, **fields)

    @property
    def log_path(self) -> str | None:
        return self._log.path if self._log is not None else None

    # The lease

    def heard(self) -> None:
        """The coordinator, or who asks in its place, has given a sign of life."""
        self._until = time.monotonic() + self._lease

    @property
    def left(self) -> float:
        """Seconds until it is given up."""
        return max(0.0, self._until - time.monotonic())

    # States

    def get_ready(self, overseer: int, restoree: int, others: list[int], halted: list[int]) -> None:
        """Who is who, in PREPARED: looked up while there is time for it. ``others``: of a tree, but for the first;
        ``halted``: those that are to be let go as stopped."""
        self._restoree = restoree
        self._people = {"overseer": settling.person(overseer), "restoree": settling.person(restoree)}
        if others:
            self._people.update(others=[settling.person(pid) for pid in others], halted=halted)

    def end_all(self) -> None:
        """The overseer is dead, and the commit was called off half-way: what it had untied already is killed."""
        if self._people.get("others"):
            settling.end([self._people["restoree"], *self._people["others"]])

    def prepare(self, program: bytes, revocable: int) -> None:
        """All is restored; ``program`` lets it go, and until its first ``revocable`` ops are done nothing has run.

        It is on the disk together with COMMITTED: nobody needs to find it there after a crash, which ends everything.
        """
        self.program, self.revocable = program, revocable
        self.record.append(PREPARED, sync=False, **self._people)
        self.state = PREPARED
        self.log("state", state=PREPARED, why="")
        # Whoever closes the session: we are not done.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.reach("there-prepared")

    def released(self) -> None:
        """The overseer has let it go. It has written that down itself, but for a disk that was full; what cannot be
        written down is true all the same."""
        self.state = RELEASED
        self._note_release()
        self.log("state", state=RELEASED, why=self.why)

    def _note_release(self) -> None:
        if self.record.ends_with(RELEASED):
            return
        try:
            self.record.mend()
            self.record.append(RELEASED)
        except OSError as error:
            self.why = f"its journal could not be written: {error.strerror}"

    def abort(self, why: str) -> None:
        """Before anything is killed. The overseer must not be at work. Where it cannot be written down it holds all the
        same: it is what follows from a journal without an end (see `settling`)."""
        if self.state not in (BEGUN, PREPARED):
            return
        prepared, self.state, self.why = self.state == PREPARED, ABORTED, why
        try:
            self.record.mend()
            self.record.append(ABORTED, sync=prepared, why=why)
        except OSError as error:
            self.why += f" (its journal could not be written: {error.strerror})"
        self.log("state", state=ABORTED, why=self.why)

    def found_out(self) -> None:
        """The overseer died in the middle of the commit: how far it came."""
        told = settling.decide(self.record)
        settling.wake(self.record, told)
        states = {settling.MOVED: RELEASED, settling.ROLLED_BACK: ABORTED}
        self.state, self.why = states.get(told["outcome"], settling.IN_DOUBT), told["why"]
        self._final = bool(told["final"])
        self.log("state", state=self.state, why=self.why)

    def told(self) -> dict[str, Any]:
        """For who asks: as `settling.settle` answers."""
        outcomes = {
            BEGUN: settling.UNDER_WAY,
            PREPARED: settling.PREPARED,
            RELEASED: settling.MOVED,
            ABORTED: settling.ROLLED_BACK,
        }
        outcome = outcomes.get(self.state, settling.IN_DOUBT)
        return {"outcome": outcome, "why": self.why, "pid": self._restoree, "final": self._final}

    def close(self) -> None:
        """Nobody can ask any more, but for the journal."""
        if self.state == RELEASED:
            self._note_release()  # there may be room again
        self.door.close()
        settling.unlisten(self.directory, self.record.id)
        self.record.close()
        self.directory.close()
        if self._log is not None:
            self._log.write("ended")
            self._log.close()

    # For tests

    def reach(self, point: str) -> None:
        """A point at which a fault may be asked for."""
        action, _, detail = self._faults.get(point, "").partition("=")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "hold":
            os.close(os.open(detail, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            while os.path.exists(detail):
                time.sleep(_POLL)

"""What the destination agent holds of a migration, and how that ends: let go, called off, or kept until somebody asks.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
from collections.abc import Sequence

from agents import cgroup, settling
from agents.commitment import Commitment
from agents.journal import PREPARED, RELEASED
from agents.overseer import Overseer, RestorerDied

ENDING = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


class PagesFailed(Exception):
    """A page frame could not be placed."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.errno = number


class Custody:
    """The overseer with its restorees, the journal, and the logs that were made for the process."""

    def __init__(self) -> None:
        self._overseer: Overseer | None = None
        self._commitment: Commitment | None = None
        self._logs: list[str] = []
        self._rooms: list[str] = []  # directories that the restorees make, and the commit takes away
        self._groups: list[str] = []  # control groups that were made for it
        self._page_failure: PagesFailed | None = None
        self._called_off: PagesFailed | None = None

    def _keep(self) -> None:
        """The connection has ended, and COMMIT may have been on its way. Whoever asks next settles it, or the end of
        the lease does."""
        while self._prepared:
            ready = self._wait([], True, 0)
            if ready is None:
                self._abort("nothing was heard from the source until the end of the lease")
            elif self._overseer is not None and self._overseer.pidfd in ready:
                self._abort(str(self._overseer.died()))

    @property
    def _prepared(self) -> bool:
        return self._commitment is not None and self._commitment.state == PREPARED

    @property
    def _released(self) -> bool:
        """It lives on, or nobody can tell."""
        return self._commitment is not None and self._commitment.state in (RELEASED, settling.IN_DOUBT)

    def _wait(self, descriptors: Sequence[int], watch: bool, patience: float) -> set[int] | None:
        """Which of them has something, the overseer's pidfd among them where that is watched. A question about the
        migration is answered. None: nothing came for ``patience`` seconds; once it is prepared, for the lease."""
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        if watch and self._overseer is not None:
            poll.register(self._overseer.pidfd, select.POLLIN)
        commitment = self._commitment
        if commitment is not None:
            poll.register(commitment.door, select.POLLIN)
            if self._prepared:
                patience = commitment.left
        ready = set(dict(poll.poll(patience * 1000)))
        if commitment is not None and commitment.door.fileno() in ready:
            self._visit(commitment.door)
            ready.remove(commitment.door.fileno())
        elif not ready:
            return None
        return ready

    def _visit(self, door: socket.socket) -> None:
        """Somebody asks in the coordinator's place."""
        commitment = self._commitment
        visit = settling.heed(door)
        if visit is None or commitment is None:
            return
        visitor, how = visit
        commitment.heard()
        commitment.log("asked", how=how)
        if how == settling.ABORT:
            self._called_off = PagesFailed("it was called off from elsewhere", None)
            self._abort("it was called off")
        elif how == settling.COMMIT and self._prepared:
            self._let_go()
        settling.answer(visitor, commitment.told())

    def _let_go(self) -> tuple[int, int]:
        """The op of the commit that failed or -1, and its result. Not to be interrupted by a signal."""
        commitment, overseer = self._commitment, self._overseer
        assert commitment is not None and overseer is not None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            if overseer.has_ended():
                self._abort(str(overseer.died()))
                return -1, 0
            try:
                failed, result = overseer.release(commitment.program)
            except RestorerDied as error:
                commitment.found_out()
                commitment.why = commitment.why and f"{error}; {commitment.why}"
                return -1, 0
            if 0 <= failed < commitment.revocable:
                self._abort(f"op {failed} of the commit failed: {os.strerror(-result)}")
            else:
                commitment.released()
            return failed, result
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # The end

    def _clean_up(self) -> None:
        if not self._released:
            self._abort("its connection ended before it was prepared")
        elif self._overseer is not None:
            self._overseer.close()
            self._overseer = None
        if self._commitment is not None:
            self._commitment.close()
            self._commitment = None

    def _abort(self, why: str) -> None:
        """Nothing of the migration is left on this host but what its journal says, which is written first."""
        commitment, overseer, self._overseer, self._page_failure = self._commitment, self._overseer, None, None
        try:
            if commitment is not None:
                commitment.abort(why)
        finally:
            try:
                if overseer is not None:
                    overseer.kill()
                    if commitment is not None:
                        commitment.end_all()
            finally:
                self._forget_logs()
                cgroup.remove(self._groups)
                self._groups = []
                while self._rooms:
                    shutil.rmtree(self._rooms.pop(), ignore_errors=True)  # where it was made; it follows no link

    def _forget_logs(self) -> None:
        while self._logs:
            try:
                os.unlink(self._logs.pop())
            except FileNotFoundError:
                pass  # somebody tidied up before us

"""`migrate restore --stdio`: we stay with the process, pass signals on to it, and end as it does."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OTHERS = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)


class Attendant:
    """Enter it before the agent is started: what that leaves behind, the process or its overseer, becomes our child
    when the agent has ended (PR_SET_CHILD_SUBREAPER(2const)), and no signal is lost before we wait."""

    def __init__(self) -> None:
        self._pidfd = -1
        self._kept: list[int] = []

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        for number in (*_STOP, *_OTHERS):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._heed)
        return self

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
        elif number in _STOP:
            raise KeyboardInterrupt
        else:
            self._kept.append(number)

    def meet(self, pid: int) -> None:
        """The process runs. While the handlers of whoever can still interrupt its restore are in place."""
        with suppress(ProcessLookupError):  # it has ended by now, and its overseer knows how
            self._pidfd = os.pidfd_open(pid)
            for number in self._kept:
                signal.pidfd_send_signal(self._pidfd, number)

    @staticmethod
    def attend(pid: int, overseer: int) -> int:
        """Until the process has ended; the exit status that tells how, as a shell has it. The overseer ends at once,
        and the process becomes our child; or, where it stays as init or as the parent, it ends after the process, and
        in its way."""
        ending = _ending(overseer)
        with suppress(ChildProcessError):
            ending = _ending(pid)
        return ending

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (*_STOP, *_OTHERS):
            if signal.getsignal(number) == self._heed:
                signal.signal(number, signal.SIG_DFL)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _ending(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code

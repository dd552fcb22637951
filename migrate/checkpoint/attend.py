"""`migrate restore --stdio`: we stay with the process, pass signals on to it, and end as it does."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PASSED = (
    *(signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT),
)


def adopt() -> None:
    """Before the agent is started: what it leaves behind, the process or its overseer, becomes our child when the agent
    has ended (PR_SET_CHILD_SUBREAPER(2const))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def attend(pid: int, overseer: int) -> int:
    """Until the process has ended; the exit status that tells how, as a shell has it. The overseer ends at once, and
    the process becomes our child; or, where it stays as init or as the parent, it ends after the process, and in its
    way."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended, and its overseer knows how
        return _ending(overseer)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)

    before = {}
    for number in PASSED:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, pass_on)
    try:
        ending = _ending(overseer)
        with suppress(ChildProcessError):
            ending = _ending(pid)
        return ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(pidfd)


def _ending(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code

"""Waiting for tracees with a deadline. wait4(2) has none, and a task in state D may never come."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from migrate.engine.tracee import ptrace

_LONGEST_NAP = 0.01  # seconds; the signal is lost when another thread of ours takes it


@contextmanager
def attentive() -> Iterator[None]:
    """Block SIGCHLD, which every stop of a tracee sends us, so that `wait_until` can sleep until it comes.

    Those of other children are consumed too: whoever counts on SIGCHLD must look after his children by wait(2).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_until(tid: int, deadline: float) -> ptrace.Stop | None:
    """The next thing that the tracee reports, or None at the deadline (of time.monotonic()). To be used inside
    `attentive`. ChildProcessError: it is no tracee of ours (any more)."""
    while True:
        stop = ptrace.wait(tid)
        if stop is not None:
            return stop
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        # Whatever stopped since the look above has left the signal pending.
        signal.sigtimedwait([signal.SIGCHLD], min(left, _LONGEST_NAP))

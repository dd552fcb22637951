"""A signal that waits for a stopped process is taken out of its queue, and the process never learns of it."""

from __future__ import annotations

import time

from migrate.engine.tracee import ptrace
from migrate.engine.tracee.detour import ProcessEnded, bit
from migrate.engine.tracee.tree import Tracee
from migrate.engine.tracee.waiting import attentive, wait_until
from migrate.errors import Failed

_ALL = (1 << 64) - 1
_TIMEOUT = 2.0  # seconds


def swallow(tracee: Tracee, number: int) -> None:
    """Take out the signal, which was sent to the process as a whole. Nothing happens when there is none.

    The first thread is let run with all other signals blocked: it gets no further than to the signal's delivery, which
    a tracer may suppress (ptrace(2), signal-delivery-stop). It stays in that stop.
    """
    tid = tracee.tids[0]
    if not any(info[:4] == number.to_bytes(4, "little") for info in tracee.shared_pending()):
        return
    mask = ptrace.get_signal_mask(tid)
    deadline = time.monotonic() + _TIMEOUT
    with attentive():
        ptrace.set_signal_mask(tid, _ALL & ~bit(number))
        while True:
            ptrace.cont(tid)
            stop = wait_until(tid, deadline)
            if stop is None:
                raise Failed(f"signal {number} does not reach thread {tid}")
            if not stop.stopped:
                raise ProcessEnded(f"process {tracee.pid} was killed while it was being looked at")
            if not stop.event and stop.signal == number:
                break
        ptrace.set_signal_mask(tid, mask)

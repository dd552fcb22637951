"""The process on the source after the agent that held it was killed: made whole again, or ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from select import select

from agents import settling
from migrate import pie
from migrate.engine.kinds import locks
from migrate.engine.program import Program, Results
from migrate.engine.standing import hide_stop
from migrate.engine.tracee import leftovers
from migrate.engine.tracee.injection import Injection, Parasite
from migrate.engine.tracee.swallow import swallow
from migrate.engine.tracee.tree import Tracee
from migrate.errors import Failed, OpFailed

KILL_PATIENCE = 30.0  # seconds; a large address space takes its time to go
_LOCK_PATIENCE = 2.0  # seconds


def cure(pid: int, halted: bool, start: int | None, held: Sequence[locks.Lock]) -> int:
    """Put right what a source agent that was killed has left behind; how many bytes were mapped. ``halted``: it may
    have stopped the process for the commit; ``start``: when the process was started, where its number may be another's
    by now; ``held``: the locks that it may have released."""
    with Tracee(pid) as tracee:
        _check_person(pid, start)
        freed = leftovers.cure(tracee)
        hide_stop(tracee, tracee.look())
        if halted and tracee.stopped_by == signal.SIGSTOP:
            signal.pidfd_send_signal(tracee.pidfd, signal.SIGCONT)
            swallow(tracee, signal.SIGCONT)
        if held:
            with Injection(tracee, pie.blob()) as parasite:
                take_back(parasite, pid, held)
    return freed


def end(pid: int, start: int | None) -> None:
    """After the commit, in place of a source agent that was killed: end the copy that it left stopped."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        _check_person(pid, start)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not select([pidfd], [], [], KILL_PATIENCE)[0]:
            raise Failed(f"pid {pid} was killed and is not gone after {KILL_PATIENCE:g} s")
    finally:
        os.close(pidfd)


def _check_person(pid: int, start: int | None) -> None:
    """Once there is a pidfd of it, a number stays what it is."""
    if start is not None and not settling.started(pid, start):
        raise Failed(f"process {pid} is another one by now")


def take_back(parasite: Parasite, pid: int, released: Sequence[locks.Lock]) -> None:
    """On a file system that both hosts share the restoree may have the locks, until it is gone."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        program = Program("taking back the locks")
        locks.restore(program, released)
        result = parasite.run({pid: program})[pid]
        if result.failed is None or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    check(result, program.title, pid)


def check(result: Results, doing: str, pid: int) -> None:
    """OpFailed in words, when one of its ops did."""
    if result.failed is not None:
        op, error = result.failed
        raise OpFailed(f"{doing} of pid {pid}: {op.label}: {os.strerror(-error)}")

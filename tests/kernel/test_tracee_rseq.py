"""Where threads have registered rseq, found out without the kernel's word: on kernels that give it, it is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrate.engine.tracee.rseq import Registrations, registered
from migrate.engine.tracee.tree import Tracee
from tests.kernel.tracees import running
from tests.tasks import wait_until
from tests.victims import Victims


def test_the_guess_is_what_the_kernel_says(victims: Victims) -> None:
    with running(victims("sleepers"), "4") as victim:
        # A new thread registers itself before it runs any code of the program's.
        wait_until("all threads asleep", lambda: victim.states() == {"S"} and len(victim.tids()) == 4)
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            guesses = Registrations(tracee.memory)
            states = tracee.threads()
            assert len(states) == 4
            for state in states:
                assert state.rseq is not None and guesses.find(state.registers.fs_base) == state.rseq
                assert registered(lambda *call, tid=state.tid: tracee.remote_syscall(tid, *call))
        victim.finish()


def test_nothing_is_guessed_where_nothing_was_registered(victims: Victims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
    with running(victims("sleepers"), "1") as victim:
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            guesses = Registrations(tracee.memory)
            for state in tracee.threads():
                assert state.rseq is None and guesses.find(state.registers.fs_base) is None
                assert not registered(lambda *call, tid=state.tid: tracee.remote_syscall(tid, *call))
        victim.finish()


def test_a_registration_of_somebody_elses_is_noticed() -> None:
    """A static program without symbols: glibc's, but nobody can tell where."""
    busybox = Path("/bin/busybox")
    assert busybox.exists() and os.access(busybox, os.X_OK)
    with running(str(busybox), "sleep", "1000", ready=False) as victim:
        wait_until("busybox asleep", lambda: victim.states() == {"S"} and victim.status("Name") == "busybox")
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            [state] = tracee.threads()
            assert Registrations(tracee.memory).find(state.registers.fs_base) is None
            assert registered(lambda *call: tracee.remote_syscall(state.tid, *call))

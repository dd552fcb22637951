"""Stopping and letting go, with everything that can come in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee.registers import ERESTART_RESTARTBLOCK
from migrate.engine.tracee.tree import Tracee
from migrate.errors import Refused
from tests.kernel.tracees import ROUNDS, running
from tests.tasks import wait_until
from tests.victims import Victims


def test_nobody_notices(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                assert set(tracee.tids) == set(victim.tids())
                assert victim.states() == {"t"}
                tracee.resume()
                time.sleep(0.002)
        assert victim.status("TracerPid") == "0"
        rounds = [int(line) for line in victim.finish().split()]
    assert len(rounds) == 9 and min(rounds) > 0


def test_a_sleep_keeps_its_deadline() -> None:
    start = time.monotonic()
    with running("sleep", "2", ready=False) as victim:
        wait_until("it sleeps", lambda: _call_of(victim.pid) in SLEEPS)
        begun = time.monotonic()
        with Tracee(victim.pid) as tracee:
            rounds = 0
            while rounds < ROUNDS and time.monotonic() < start + 1.5:
                tracee.stop()
                registers = tracee.registers(victim.pid)
                if registers.interrupted_with != ERESTART_RESTARTBLOCK:  # it has not come to run since it was let go
                    assert registers.rax == NUMBERS["restart_syscall"], registers
                tracee.resume()
                rounds += 1
        assert rounds > 10
        victim.finish()
        end = time.monotonic()
        assert end >= start + 2
        assert end < begun + 2.5


SLEEPS = {NUMBERS["nanosleep"], NUMBERS["clock_nanosleep"]}


def _call_of(pid: int) -> int:
    """The system call that it is in, or -1 (proc_pid_syscall(5))."""
    word = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return int(word) if word.isdecimal() else -1


def test_threads_that_come_and_go(victims: Victims) -> None:
    with running(victims("churn")) as victim:
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                assert set(tracee.tids) == set(victim.tids())
                assert victim.states() == {"t"}
                tracee.resume()
        assert int(victim.finish()) > 0


def test_no_signal_is_lost(victims: Victims) -> None:
    sent = 0
    with running(victims("queued")) as victim:
        stopping = threading.Event()

        def storm() -> None:
            nonlocal sent
            while not stopping.is_set():
                sent += victim.queue(signal.SIGRTMIN, sent)
                time.sleep(0.00005)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            with Tracee(victim.pid) as tracee:
                for _ in range(ROUNDS):
                    tracee.stop()
                    time.sleep(0.001)
                    tracee.resume()
                    time.sleep(0.001)
        finally:
            stopping.set()
            thread.join()
        os.kill(victim.pid, signal.SIGTERM)
        assert int(victim.finish()) == sent > ROUNDS


def test_what_is_pending_is_seen_and_stays(victims: Victims) -> None:
    with running(victims("queued")) as victim:
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            for value in range(150):
                assert victim.queue(signal.SIGRTMIN, value)
            shared = tracee.shared_pending()
            assert [int.from_bytes(info[24:28], "little") for info in shared] == list(range(150))
            assert all(not thread.pending for thread in tracee.threads())
        os.kill(victim.pid, signal.SIGTERM)
        assert int(victim.finish()) == 150


def test_a_stopped_process_stays_stopped(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        os.kill(victim.pid, signal.SIGSTOP)
        os.waitpid(victim.pid, os.WUNTRACED)
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                assert tracee.stopped_by == signal.SIGSTOP
                tracee.resume()
                assert victim.is_stopped()
        assert os.waitpid(victim.pid, os.WUNTRACED | os.WNOHANG) == (0, 0)  # its parent hears of it once
        os.kill(victim.pid, signal.SIGCONT)
        time.sleep(0.05)
        victim.finish()


def test_a_signal_that_stops_or_continues_it_meanwhile(victims: Victims) -> None:
    with running(victims("watchful")) as victim, Tracee(victim.pid) as tracee:
        for _ in range(ROUNDS):
            tracee.stop()
            os.kill(victim.pid, signal.SIGSTOP)
            tracee.resume()
            assert os.waitpid(victim.pid, os.WUNTRACED)[0] == victim.pid
            tracee.stop()
            assert tracee.stopped_by == signal.SIGSTOP
            os.kill(victim.pid, signal.SIGCONT)
            tracee.resume()
            tracee.stop()
            assert tracee.stopped_by == 0
            tracee.resume()
        victim.finish()


def test_killed_while_it_is_stopped(victims: Victims) -> None:
    for _ in range(10):
        with running(victims("sleepers"), "20") as victim, Tracee(victim.pid) as tracee:
            tracee.stop()
            os.kill(victim.pid, signal.SIGKILL)
            tracee.resume()
            victim.process.wait(5)  # the status went to its tracer, because that is its parent too
            assert not Path(f"/proc/{victim.pid}").exists()


def test_a_thousand_threads(victims: Victims) -> None:
    with running(victims("sleepers"), "1000") as victim, Tracee(victim.pid) as tracee:
        for _ in range(10):
            tracee.stop()
            assert len(tracee.tids) == 1000
            tracee.resume()
        victim.finish()


def test_a_thread_that_cannot_stop_is_let_go_with_a_sentence(victims: Victims) -> None:
    # In a process of its own: only its end lets go of the thread. It has started when the victim does.
    script = (
        "import sys\nfrom migrate.engine.tracee.tree import *\nprint('ready', flush=True)\n"
        "try:\n    Tracee(int(sys.stdin.readline())).stop(0.2)\nexcept StopTimeout as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None and tracer.stdout.readline() == "ready\n"
        with running(victims("vforks"), "1000") as victim:
            wait_until("in vfork", lambda: " D " in Path(f"/proc/{victim.pid}/stat").read_text())
            said, _ = tracer.communicate(f"{victim.pid}\n")
            assert "did not stop within 0.2 s: it is in a sleep that nothing can interrupt (state D" in said
            victim.finish()


def test_another_tracer_is_in_the_way(victims: Victims) -> None:
    with running(victims("sleepers"), "3") as victim, Tracee(victim.pid) as tracee:
        tracee.stop()
        script = (
            "import sys\nfrom migrate.engine.tracee.tree import *\n"
            "try:\n    Tracee(int(sys.argv[1])).stop()\nexcept Refused as error:\n    print(error)\n"
        )
        command = [sys.executable, "-c", script, str(victim.pid)]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"it is traced already, by process {os.getpid()}" in said.stdout
        tracee.resume()
        victim.finish()


def test_gone_before_it_is_stopped() -> None:
    with running("true", ready=False) as victim, Tracee(victim.pid) as tracee:
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(Refused, match="its first thread has ended"):
            tracee.stop()

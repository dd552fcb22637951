"""What a process is besides memory, threads and files: signal actions, timers, limits, rights, and its number."""

from __future__ import annotations

import os
import signal

from tests.hosts import Host
from tests.migration.journey import Journeys
from tests.tasks import Task, status_field, wait_until

ORDINARY = ("setpriv", "--reuid=4201", "--regid=4201", "--clear-groups")


def test_all_signal_actions(journeys: Journeys) -> None:
    journeys.start("actions").go()


def test_posix_and_interval_timers(journeys: Journeys) -> None:
    # A signal comes every few milliseconds, and a look may come before it is delivered.
    journeys.start("timers").go(ignore=[r"(status|thread \d+) (ShdPnd|SigPnd)"])


def test_limits_personality_and_controls(journeys: Journeys) -> None:
    journeys.start("settings").go()


def test_users_groups_and_capabilities(journeys: Journeys) -> None:
    journeys.start("settings", "unprivileged").go()


def test_a_process_of_an_ordinary_user(journeys: Journeys) -> None:
    for victim in ("numbered", "grows", "shared"):
        journeys.start(victim, wrap=ORDINARY).go()


def test_numbers_are_kept(journeys: Journeys) -> None:
    journey = journeys.start("numbered", "16")
    pid = journey.task.pid
    assert journey.go().report["new_pid"] == pid


def test_a_number_that_is_taken(journeys: Journeys) -> None:
    """The process gets a PID namespace of its own, with its own /proc, and keeps its numbers inside."""
    pair = journeys.pair
    journey = journeys.start("numbered", "4")
    pid = journey.task.pid
    blocker = occupy(pair.b, pid)
    outcome = journey.move()
    assert blocker.alive
    assert f"pid {pid} is taken" in outcome.err
    assert outcome.report["new_pid"] != pid
    numbers = status_field(journey.task.outer, "NSpid")
    assert numbers[-1] == str(pid)
    assert numbers[-2] == str(outcome.report["new_pid"])
    assert os.stat(f"/proc/{journey.task.outer}/ns/pid").st_ino != os.stat(f"/proc/{pair.b.init}/ns/pid").st_ino
    journey.tell()
    journey.verdict()
    wait_until("the namespace's init gone", lambda: not any(_is_overseer(outer) for outer in pair.b.outer_pids()))


def test_killed_in_its_own_namespace(journeys: Journeys) -> None:
    """Signals from outside reach it, and its init ends with it."""
    pair = journeys.pair
    journey = journeys.start("numbered")
    occupy(pair.b, journey.task.pid)
    outcome = journey.move()
    pair.b.run(["kill", "-TERM", str(outcome.report["new_pid"])])
    journey.task.wait_gone()
    wait_until("the namespace's init gone", lambda: not any(_is_overseer(outer) for outer in pair.b.outer_pids()))


def _is_overseer(outer: int) -> bool:
    return status_field(outer, "Name") == ["migrate-overseer"]


def occupy(host: Host, pid: int) -> Task:
    """A process on ``host`` with this number."""
    script = f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid; setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
    for _ in range(20):
        found = int(host.run(["sh", "-c", script]).stdout)
        if found == pid:
            break
        host.adopt(found).signal(signal.SIGKILL)
    return host.adopt(pid)


def test_a_timer_whose_thread_has_ended(journeys: Journeys) -> None:
    # Nobody is notified any more, which /proc shows of the old one by the number of a thread that is no more.
    journeys.start("orphaned").go(ignore=["timer 0 notify"])

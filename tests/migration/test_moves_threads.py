"""Threads move with all that is theirs: registers, signals, names, rights, and the calls that they sleep in."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.migration.journey import Journeys, stop
from tests.tasks import wait_until
from tests.victims import check_counter


@pytest.mark.parametrize("threads", [1, 64])
def test_general_registers_flags_and_segment_bases(journeys: Journeys, threads: int) -> None:
    journeys.start("registers", str(threads)).go()


@pytest.mark.parametrize("threads", [1, 64])
def test_every_component_of_the_xsave_area(journeys: Journeys, threads: int) -> None:
    journeys.start("xsave", str(threads)).go()


@pytest.mark.parametrize("threads", [1, 64])
def test_threads_count_on(journeys: Journeys, threads: int) -> None:
    log = journeys.pair.directory / f"counted-{threads}"
    journey = journeys.run("counter", [journeys.victims("counter"), str(log), str(threads)])
    wait_until("counting", lambda: log.exists() and log.stat().st_size > 10000)
    journey.move(ignore=["fd 3 pos"])
    moved_at = log.stat().st_size
    wait_until("counting on", lambda: log.stat().st_size > moved_at + 10000)
    journey.task.kill()
    with log.open() as lines:
        assert check_counter(lines, threads) > 0


def test_what_each_thread_has_of_its_own(journeys: Journeys) -> None:
    journeys.start("personal", "16").go()


def test_in_a_handler_on_the_alternate_stack(journeys: Journeys) -> None:
    journeys.start("altstack").go()


def test_signals_that_wait(journeys: Journeys) -> None:
    journeys.start("pending").go()


def test_robust_mutexes_and_the_cleared_tid(journeys: Journeys) -> None:
    journeys.start("robust").go()


def test_restartable_sequences(journeys: Journeys) -> None:
    journeys.start("rseq").go()


@pytest.mark.parametrize("milliseconds", [500, 6000])
def test_asleep_in_every_way(journeys: Journeys, milliseconds: int) -> None:
    journey = journeys.start("asleep", str(milliseconds))
    # the short deadlines may pass while it is on its way; the threads that they are for then end
    journey.move(look=milliseconds > 5000)
    time.sleep(0.3)  # in which nothing may wake early
    journey.tell()
    journey.verdict()


def test_stopped_stays_stopped(journeys: Journeys) -> None:
    log = journeys.pair.directory / "counted-stopped"
    journey = journeys.run("counter", [journeys.victims("counter"), str(log), "4"])
    wait_until("counting", lambda: log.exists() and log.stat().st_size > 1000)
    stop(journey.task, journeys.pair.a)
    size = log.stat().st_size
    journey.move()
    time.sleep(0.2)
    assert log.stat().st_size == size
    assert "T" in _states(journey.task.outer) and len(_states(journey.task.outer)) == 1
    journey.task.signal(signal.SIGCONT)
    wait_until("counting on", lambda: log.stat().st_size > size + 1000)
    journey.task.kill()
    with log.open() as lines:
        check_counter(lines, 4)


def _states(outer: int) -> set[str]:
    threads = Path(f"/proc/{outer}/task").iterdir()
    return {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads}

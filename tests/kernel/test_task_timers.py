"""Interval timers and POSIX timers, put back in another process."""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path

import pytest

from migrate.engine.kernel.accounting import timers
from migrate.engine.kinds.timers import IntervalTimer, probe_restore_ids
from migrate.engine.program import Program
from migrate.pie.local import run
from tests.kernel.actors import Actor, Task, collect, destination, syscall

SECOND = 1_000_000_000
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU, BOOTTIME, TAI = 0, 1, 2, 3, 7, 11
NOTIFY_SIGNAL, NOTIFY_NONE, NOTIFY_THREAD_ID = 0, 1, 4


def _set_interval_timers() -> None:
    signal.setitimer(signal.ITIMER_REAL, 1000.5, 0.25)
    signal.setitimer(signal.ITIMER_PROF, 2000.0)


def test_interval_timers() -> None:
    with Actor() as source, Actor() as there:
        source.call(_set_interval_timers)
        before = collect(source).process.interval_timers
        real, virtual, prof = before.timers
        assert real.interval == 250_000 and 990_000_000 < real.remaining <= 1_000_500_000
        assert virtual == IntervalTimer(0, 0)
        assert prof.interval == 0 and 1_990_000_000 < prof.remaining <= 2_000_010_000
        program = Program("interval timers")
        before.restore(program)
        there.run(program)
        after = collect(there).process.interval_timers
        for old, new in zip(before.timers, after.timers, strict=True):
            assert new.interval == old.interval
            assert old.remaining - 500_000 < new.remaining <= old.remaining + 10_000  # CPU time in ticks
        assert there.call(signal.getitimer, signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def _create(clock: int, notify: int, number: int, value: int) -> int:
    ident = bytearray(4)
    tid = os.getpid() if notify & NOTIFY_THREAD_ID else 0
    syscall("timer_create", clock, struct.pack("<Qiii44x", value, number, notify, tid), ident)
    return int.from_bytes(ident, "little")


def _set_timers() -> None:
    """Ids 0 to 11 but for 1, 2 and 7."""
    settings = [
        (MONOTONIC, NOTIFY_SIGNAL, 34, 0xDEAD_BEEF_0000, 1000 * SECOND, 7),
        None,
        None,
        (REALTIME, NOTIFY_SIGNAL | NOTIFY_THREAD_ID, 35, 3, 500 * SECOND, 2 * SECOND + 5),
        (BOOTTIME, NOTIFY_NONE, 0, 4, 900 * SECOND, 0),
        (PROCESS_CPU, NOTIFY_SIGNAL, 36, 5, 800 * SECOND, 0),
        (THREAD_CPU, NOTIFY_SIGNAL, 37, 6, 700 * SECOND, SECOND),
        None,
        (MONOTONIC, NOTIFY_SIGNAL, 64, 8, 0, 0),
        (TAI, NOTIFY_SIGNAL, 38, 9, 600 * SECOND, 0),
        (~os.getpid() << 3 | 2, NOTIFY_SIGNAL, 39, 10, 600 * SECOND, 0),  # clock_getcpuclockid(3)
        (MONOTONIC, 2, 33, 0x7777, 3 * SECOND, 0),  # SIGEV_THREAD, as musl's and the kernel's own number
    ]
    spares = []
    for number, setting in enumerate(settings):
        if setting is None:
            spares.append(_create(MONOTONIC, NOTIFY_NONE, 0, 0))
            continue
        clock, notify, signo, value, first, interval = setting
        assert _create(clock, notify, signo, value) == number
        if first:
            times = struct.pack("<qqqq", *divmod(interval, SECOND), *divmod(first, SECOND))
            syscall("timer_settime", number, 0, times, 0)
    for number in spares:
        syscall("timer_delete", number)


def _restore(task: Task, there: Actor, by_id: bool) -> None:
    program = Program("timers")
    task.as_pid(there.pid).process.posix_timers.restore(program, by_id)
    there.run(program)


@pytest.mark.parametrize("by_id", [True, False])
def test_posix_timers(by_id: bool) -> None:
    with Actor() as source, Actor() as there:
        source.call(_set_timers)
        before = collect(source)
        saved = before.process.posix_timers.timers
        assert [timer.id for timer in saved] == [0, 3, 4, 5, 6, 8, 9, 10, 11]
        assert [timer.id for timer in saved if timer.deadline is not None] == [0, 4, 11]
        assert saved[0].value == 0xDEAD_BEEF_0000 and saved[0].interval == 7
        # the clock of a process by its number: that is another number here
        mine = {~source.pid << 3 | 2: ~there.pid << 3 | 2}
        moved = before.as_pid(there.pid).process.posix_timers
        for timer in moved.timers:
            object.__setattr__(timer, "clock", mine.get(timer.clock, timer.clock))
        program = Program("timers")
        moved.restore(program, by_id)
        there.run(program)
        after = collect(there).process.posix_timers
        for old, new in zip(moved.timers, after.timers, strict=True):
            assert (new.id, new.clock, new.notify, new.signal, new.value) == (
                old.id, old.clock, old.notify, old.signal, old.value,
            )
            assert (new.target, new.interval) == (old.target, old.interval)
            assert (new.remaining == 0) == (old.remaining == 0)
            if old.deadline is not None and old.interval != 7:
                # the deadline that was restored is `old`'s; a deadline that is read is never too early
                assert new.deadline is not None and old.deadline <= new.deadline < old.deadline + SECOND // 2
            elif old.remaining and old.interval != 7:
                assert old.remaining - SECOND < new.remaining <= old.remaining + 10_000_000
        listed = [timers(Path(f"/proc/{pid}/timers").read_text()) for pid in (source.pid, there.pid)]
        assert [(t.id, t.signal, t.value, t.notify, t.thread) for t in listed[0]] == [
            (t.id, t.signal, t.value, t.notify, t.thread) for t in listed[1]
        ]


def _short(nanoseconds: int) -> None:
    _create(MONOTONIC, NOTIFY_SIGNAL, 40, 0x1234)
    syscall("timer_settime", 0, 0, struct.pack("<qqqq", 0, 0, 0, nanoseconds), 0)


def _await(number: int) -> tuple[float, int]:
    info = bytearray(128)
    syscall("rt_sigtimedwait", struct.pack("<Q", 1 << (number - 1)), info, struct.pack("<qq", 5, 0), 8)
    return time.monotonic(), struct.unpack_from("<Q", info, 24)[0]


def test_a_monotonic_timer_fires_when_it_would_have() -> None:
    """Time passes between the dump and the restore, and the deadline stands."""
    with Actor() as source, Actor() as there:
        source.call(_short, SECOND // 4)
        before = collect(source)
        deadline = before.process.posix_timers.timers[0].deadline
        assert deadline is not None
        time.sleep(0.1)
        _restore(before, there, True)
        fired, value = there.call(_await, 40)
        assert value == 0x1234
        assert -0.001 < fired - deadline / SECOND < 0.1


def test_new_timers_after_a_restore_by_id_are_as_usual() -> None:
    with Actor() as source, Actor() as there:
        source.call(_short, SECOND - 1)
        _restore(collect(source), there, True)
        assert there.call(_create, MONOTONIC, NOTIFY_NONE, 0, 0) == 1


def test_an_id_that_is_taken_is_an_error_that_names_the_timer() -> None:
    with Actor() as source, Actor() as there:
        source.call(_short, SECOND - 1)
        program = Program("timers")
        collect(source).process.posix_timers.restore(program, True)
        there.call(_short, SECOND - 1)
        assert there.attempt(program) == ("timer 0", -16)  # EBUSY


def test_counting_up_fails_where_ids_have_been_used() -> None:
    with Actor() as source, Actor() as there:
        source.call(_set_timers)
        task = collect(source)
        there.call(_create, MONOTONIC, NOTIFY_NONE, 0, 0)
        program = Program("timers")
        task.as_pid(there.pid).process.posix_timers.restore(program, False)
        failed = there.attempt(program)
        assert failed is not None and failed[0] == "timer 0"


def test_probe() -> None:
    """Here it is known what the answer must be: by id worked in the other tests."""
    program = Program("probe")
    decode = probe_restore_ids(program)
    assert decode(run(program.link())) is True
    assert destination().timers_by_id


def test_problems() -> None:
    with Actor() as source:
        source.call(_set_timers)
        found = collect(source).process.posix_timers
        assert found.problems("pid 1", {source.pid}, True) == []
        several = found.problems("pid 1", {source.pid, 99_999_999}, True)
        assert [str(problem) for problem in several] == [
            "pid 1 POSIX timer 6: measures the CPU time of one of several threads, unknown which"
        ]
        other = found.problems("pid 1", {99_999_999}, True)
        assert [problem.where for problem in other] == ["pid 1 POSIX timer 10"]

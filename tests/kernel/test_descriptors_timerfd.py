"""timerfd_create(2): what is armed stays armed, what is not stays so, and no expiration is lost on the way."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from dataclasses import replace
from typing import Any

import pytest

from migrate.engine.kernel.fdcalls import timerfd_gettime
from migrate.engine.kinds.timerfd import TimerFd
from migrate.engine.program import Program
from migrate.engine.program.ops import Arg, Slot
from tests.kernel.descriptor_bed import child, linked, moved, run_all, same_outside

libc = ctypes.CDLL(None, use_errno=True)


def timerfd(clock: int, flags: int, value: float, interval: float) -> int:
    fd = int(libc.timerfd_create(clock, os.O_NONBLOCK))
    settime(fd, flags, value, interval)
    return fd


def settime(fd: int, flags: int, value: float, interval: float) -> None:
    parts = [part for seconds in (interval, value) for part in divmod(int(seconds * 10**9), 10**9)]
    assert libc.timerfd_settime(fd, flags, struct.pack("4q", *parts), None) == 0


def test_timerfd() -> None:
    with child() as source:
        source.do(timerfd, 1, 0, 100.0, 3.0)
        deadline = time.clock_gettime(time.CLOCK_MONOTONIC) + 50
        source.do(timerfd, 1, 1, deadline, 0.0)
        source.do(timerfd, 0, 3, time.time() + 70, 0.0)
        source.do(timerfd, 7, 0, 0.001, 0.0)  # fires, unread
        source.do(timerfd, 1, 0, 0.001, 0.004)  # keeps firing
        source.do(timerfd, 1, 0, 0.0, 0.0)
        time.sleep(0.03)
        table, _ = source.dump()
        states = [d.state for d in table.descriptions if isinstance(d.state, TimerFd)]
        assert states[1].value == pytest.approx(deadline * 1e9, abs=5e6)
        assert states[1].settime_flags == 1 and states[2].settime_flags == 3
        assert states[3] == TimerFd(7, 0, 0, 0, 1)
        assert states[4].ticks >= 5 and states[4].interval == 4_000_000 and 0 < states[4].value <= 4_000_000
        assert states[5] == TimerFd(1, 0, 0, 0, 0)
        with moved(source) as target:
            same_outside(source, target, 0, 1, 2, 3, 5)
            again, _ = target.dump()
            after = [d.state for d in again.descriptions if isinstance(d.state, TimerFd)]
            assert after[0].value == pytest.approx(states[0].value, abs=1e9) and after[0].interval == 3 * 10**9
            assert after[1].value == pytest.approx(states[1].value, abs=1e7)
            assert struct.unpack("Q", target.call(os.read, 3, 8)) == (1,)
            ticks = struct.unpack("Q", target.call(os.read, 4, 8))[0]
            assert ticks >= states[4].ticks


def test_timer_of_a_short_period_stays_armed() -> None:
    """It fires again before anyone can look at what is left of the period."""
    with child() as source:
        source.do(timerfd, 1, 0, 0.000_001, 0.000_001)
        start = time.clock_gettime(time.CLOCK_MONOTONIC)
        source.do(timerfd, 1, 1, start + 0.000_001, 0.000_002)
        time.sleep(0.01)
        for _ in range(20):
            table, problems = source.dump()
            relative, absolute = (d.state for d in table.descriptions if isinstance(d.state, TimerFd))
            assert problems == [] and 0 < relative.value <= 1000 and relative.ticks > 0
            assert absolute.value / 1e9 == pytest.approx(time.clock_gettime(time.CLOCK_MONOTONIC), abs=1)


def test_timer_that_fires_again_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine more than a period may pass between asking it and looking at it; its phase stays."""
    waits = iter([0.05, 0.03])

    def asked(fd: int) -> int:
        left = timerfd_gettime(fd)
        time.sleep(next(waits, 0))
        return left

    monkeypatch.setattr("migrate.engine.kinds.timerfd.timerfd_gettime", asked)
    period = 0.02
    with child() as source:
        start = time.clock_gettime(time.CLOCK_MONOTONIC)
        source.do(timerfd, 1, 1, start + period, period)
        time.sleep(2 * period)
        table, problems = source.dump()
        [state] = (d.state for d in table.descriptions if isinstance(d.state, TimerFd))
        assert problems == [] and next(waits, None) is None
        periods = (state.value / 1e9 - start) / period
        assert periods == pytest.approx(round(periods), abs=0.05)
        assert state.ticks == round(periods) - 1


def test_timer_that_fires_while_it_is_away_counts_everything() -> None:
    """Unread expirations from before, and those that were due before it is armed again."""
    with child() as source:
        start, period = time.clock_gettime(time.CLOCK_MONOTONIC), 0.02
        fd = source.do(timerfd, 1, 1, start + period, period)
        time.sleep(5 * period)
        with moved(source) as target:
            time.sleep(5 * period)
            before = time.clock_gettime(time.CLOCK_MONOTONIC)
            [ticks] = struct.unpack("Q", target.call(os.read, fd, 8))
            after = time.clock_gettime(time.CLOCK_MONOTONIC)
            assert int((before - start) / period - 0.1) <= ticks <= int((after - start) / period + 0.1)


@pytest.mark.parametrize("clock", [0, 1, 7])
@pytest.mark.parametrize("flags", [0, 1])
def test_timer_that_is_not_armed_and_has_an_interval_stays_so(clock: int, flags: int) -> None:
    with child() as source:
        source.do(timerfd, clock, flags, 0.0, 0.02)
        table, _ = source.dump()
        assert [d.state for d in table.descriptions] == [TimerFd(clock, flags, 0, 20_000_000, 0)]
        with moved(source) as target:
            same_outside(source, target, 0)
            time.sleep(0.05)
            assert target.dump()[0].descriptions == table.descriptions


def test_timer_that_has_fired_and_was_not_counted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is up, but the interrupt has not come: nothing is left of its time, and it does not tell."""
    looks = iter(range(3))

    def asked(fd: int) -> int:
        if next(looks, None) is None:
            fires()
        return timerfd_gettime(fd)

    def fires() -> None:
        source.do(settime, 0, 0, 1e-9, 0.0)
        time.sleep(0.001)

    monkeypatch.setattr("migrate.engine.kinds.timerfd.timerfd_gettime", asked)
    with child() as source:
        source.do(timerfd, 1, 0, 0.0, 0.0)
        [state] = (d.state for d in source.dump()[0].descriptions)
        assert state == TimerFd(1, 0, 0, 0, 1)


@pytest.mark.parametrize("clock", [0, 1, 7])
@pytest.mark.parametrize("flags", [0, 1])
def test_timer_that_fires_between_two_calls_of_the_restore(
    clock: int, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever restores it loses the CPU for longer than the timer has left, and no expiration is lost."""
    write = Program.syscall

    def slowly(program: Program, name: str, *args: Arg, **options: Any) -> Slot:
        slot = write(program, name, *args, **options)
        if name == "timerfd_settime":
            write(program, "nanosleep", program.data(struct.pack("<2q", 0, 20_000_000)), 0, label="busy machine")
        return slot

    monkeypatch.setattr(Program, "syscall", slowly)
    with child() as source, child() as target:
        source.do(timerfd, clock, flags, 0.0, 10.0)
        table, _ = source.dump()
        deadline = time.clock_gettime_ns(clock) + 5_000_000
        state = TimerFd(clock, flags, deadline if flags else 5_000_000, 10**10, 7, 0 if flags else deadline)
        [description] = table.descriptions
        changed = replace(table, descriptions=(replace(description, state=state),))
        assert target.do(run_all, linked(changed, None)) == ""
        assert target.do(os.read, 0, 8) == struct.pack("Q", 8)

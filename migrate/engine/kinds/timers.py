"""The timers of a process: the three of setitimer(2) and those of timer_create(2).

What remains is read, not the deadline. Where the timer's clock goes on unbroken at the destination (CLOCK_MONOTONIC and
CLOCK_BOOTTIME, by the time namespace), the deadline is reckoned from it, and the timer fires when it would have. On
other clocks what remained when the task was frozen starts anew: such a timer fires late by the downtime, never
early. Wall-clock timers are among those: the kernel does not tell an absolute one from a relative one, relative ones
are common, and a deadline from another machine's wall clock may be off by more than a downtime.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from migrate.engine.kernel.accounting import PosixTimer as ListedTimer
from migrate.engine.kernel.prctl import (
    PR_TIMER_CREATE_RESTORE_IDS,
    PR_TIMER_CREATE_RESTORE_IDS_GET,
    PR_TIMER_CREATE_RESTORE_IDS_OFF,
    PR_TIMER_CREATE_RESTORE_IDS_ON,
)
from migrate.engine.program import OpKind, Program, Results
from migrate.errors import Problem

ITIMERS = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")  # by their numbers
CLOCK_MONOTONIC, CLOCK_BOOTTIME = 1, 7
# Negative clocks: ~pid << 3 | flags (linux/posix-timers_types.h). pid 0 is the caller; the kernel shows
# CLOCK_PROCESS_CPUTIME_ID and CLOCK_THREAD_CPUTIME_ID in this form too, as -6 and -2.
CPUCLOCK_WHICH, CPUCLOCK_FD, CPUCLOCK_PERTHREAD = 3, 3, 4
_UNBROKEN = (CLOCK_MONOTONIC, CLOCK_BOOTTIME)
TIMER_ABSTIME = 1
SIGEV = {"signal": 0, "none": 1, "thread": 2}  # sigevent(3type)
SIGEV_THREAD_ID = 4
MAX_COUNTED = 4096  # ids that we count up to where the kernel cannot be asked for one
_FOUR = struct.Struct("<qqqq")  # itimerval, itimerspec: interval, then what remains
_TIME = struct.Struct("<qq")
_EVENT = struct.Struct("<QiiI44x")  # struct sigevent: value, signo, notify, tid, padding to 64
_SECOND = 1_000_000_000
_LOW = 0xFFFF_FFFF


@dataclass(frozen=True)
class IntervalTimer:
    """One of setitimer(2), in microseconds; 0 remaining: not running."""

    interval: int
    remaining: int


@dataclass(frozen=True)
class IntervalTimers:
    """ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF."""

    timers: tuple[IntervalTimer, IntervalTimer, IntervalTimer]

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results], IntervalTimers]:
        """Three ops."""
        room = [program.space(_FOUR.size) for _ in ITIMERS]
        for which, name in enumerate(ITIMERS):
            program.syscall("getitimer", which, room[which], label=name)

        def one(raw: bytes) -> IntervalTimer:
            seconds, micro, left, left_micro = _FOUR.unpack(raw)
            return IntervalTimer(seconds * 1_000_000 + micro, left * 1_000_000 + left_micro)

        def decode(results: Results) -> IntervalTimers:
            real, virtual, prof = (one(results.bytes(buffer)) for buffer in room)
            return cls((real, virtual, prof))

        return decode

    def restore(self, program: Program) -> None:
        """Children inherit no interval timers, so one that does not run needs nothing."""
        for which, timer in enumerate(self.timers):
            if timer.remaining:
                value = _FOUR.pack(*divmod(timer.interval, 1_000_000), *divmod(timer.remaining, 1_000_000))
                program.syscall("setitimer", which, program.data(value), 0, label=ITIMERS[which])


@dataclass(frozen=True)
class PosixTimer:
    """One of timer_create(2). Times in nanoseconds."""

    id: int
    clock: int
    notify: int  # SIGEV_*, with SIGEV_THREAD_ID
    signal: int
    value: int  # sigev_value
    target: int  # with SIGEV_THREAD_ID: the TID, as the task knows it
    interval: int
    remaining: int  # 0: not running
    overrun: int  # of the last signal delivered; the kernel does not let anybody set it
    deadline: int | None  # on its clock, where that is unbroken


@dataclass(frozen=True)
class PosixTimers:
    """Those of a process, by id."""

    timers: tuple[PosixTimer, ...]

    @classmethod
    def collect(
        cls, program: Program, listed: Sequence[ListedTimer], tids: Mapping[int, int] | None = None
    ) -> Callable[[Results], PosixTimers]:
        """Two ops for each timer and one for each unbroken clock in use. ``listed``: /proc/PID/timers, which names
        threads by our numbers; ``tids``: ours -> those of the task's PID namespace, where they differ."""
        clocks = {clock: program.space(_TIME.size) for clock in _UNBROKEN if any(t.clock == clock for t in listed)}
        settings = [program.space(_FOUR.size) for _ in listed]
        overruns = []
        for timer, room in zip(listed, settings, strict=True):
            program.syscall("timer_gettime", timer.id, room, label=f"timer {timer.id}")
            overruns.append(program.syscall("timer_getoverrun", timer.id, label=f"overrun of timer {timer.id}"))
        # After the timers: a deadline may come out late by what passes in between, never early.
        for clock, room in clocks.items():
            program.syscall("clock_gettime", clock, room, label=f"clock {clock}")

        def decode(results: Results) -> PosixTimers:
            now = {clock: _nanoseconds(*_TIME.unpack(results.bytes(room))) for clock, room in clocks.items()}
            found = []
            for timer, room, overrun in zip(listed, settings, overruns, strict=True):
                seconds, nano, left, left_nano = _FOUR.unpack(results.bytes(room))
                remaining = _nanoseconds(left, left_nano)
                running = remaining and timer.clock in now
                found.append(
                    PosixTimer(
                        timer.id,
                        timer.clock,
                        SIGEV[timer.notify] | (SIGEV_THREAD_ID if timer.thread else 0),
                        timer.signal,
                        timer.value,
                        (tids or {}).get(timer.target, timer.target) if timer.thread else 0,
                        _nanoseconds(seconds, nano),
                        remaining,
                        results.of(overrun),
                        now[timer.clock] + remaining if running else None,
                    )
                )
            return cls(tuple(sorted(found, key=lambda timer: timer.id)))

        return decode

    def problems(self, where: str, tids: Collection[int], restore_ids: bool) -> list[Problem]:
        """What cannot be made again; ``tids``: the process's threads, as it knows them; ``restore_ids``: what the
        destination's kernel has (`probe_restore_ids`)."""
        found = []
        for timer in self.timers:
            name = f"{where} POSIX timer {timer.id}"
            if timer.clock < 0:
                pid = ~(timer.clock >> 3)
                if timer.clock & CPUCLOCK_WHICH == CPUCLOCK_FD:
                    found.append(Problem(name, f"runs on the clock of a device ({timer.clock})"))
                elif pid == 0 and timer.clock & CPUCLOCK_PERTHREAD and len(tids) > 1:
                    # That of the thread that created it, and nothing tells which one it was.
                    found.append(Problem(name, "measures the CPU time of one of several threads, unknown which"))
                elif pid and pid not in tids:
                    found.append(Problem(name, f"measures the CPU time of another process ({pid})"))
            if not restore_ids and timer.id >= MAX_COUNTED:
                found.append(Problem(name, "its id is too high to be counted up to", "Linux 6.15 there can set it"))
        return found

    def restore(self, program: Program, restore_ids: bool) -> None:
        """Create them under their ids, then set them. ``restore_ids``: the kernel takes the id that it finds where it
        would write it ("posix-timers: Provide a mechanism to allocate a given timer ID", ec2d0c04624b, Linux 6.15).
        Without it ids count up from 0 in a new process, so the ones in between are made and deleted."""
        if not self.timers:
            return
        if restore_ids:
            self._mode(program, PR_TIMER_CREATE_RESTORE_IDS_ON, "on")
        following = 0
        for timer in self.timers:
            if not restore_ids:
                for spare in range(following, timer.id):
                    _create(program, PosixTimer(spare, CLOCK_MONOTONIC, SIGEV["none"], 0, 0, 0, 0, 0, 0, None))
                    program.syscall("timer_delete", spare, label=f"spare timer {spare}")
                following = timer.id + 1
            _create(program, timer)
        if restore_ids:
            self._mode(program, PR_TIMER_CREATE_RESTORE_IDS_OFF, "off")
        for timer in self.timers:
            if timer.remaining:
                flags, value = (0, timer.remaining) if timer.deadline is None else (TIMER_ABSTIME, timer.deadline)
                setting = program.data(_FOUR.pack(*divmod(timer.interval, _SECOND), *divmod(value, _SECOND)))
                program.syscall("timer_settime", timer.id, flags, setting, 0, label=f"timer {timer.id}")

    @staticmethod
    def _mode(program: Program, mode: int, word: str) -> None:
        program.syscall("prctl", PR_TIMER_CREATE_RESTORE_IDS, mode, 0, 0, 0, label=f"timers by id: {word}")


def probe_restore_ids(program: Program) -> Callable[[Results], bool]:
    """One op: whether timers can be created by id here."""
    call, ask = PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET
    slot = program.syscall("prctl", call, ask, 0, 0, 0, label="timers by id", ignore=True)
    return lambda results: results.of(slot) >= 0


def _create(program: Program, timer: PosixTimer) -> None:
    label = f"timer {timer.id}"
    event = program.data(_EVENT.pack(timer.value, timer.signal, timer.notify, timer.target))
    # Two words: CHECK looks at 64 bits. What is there is the id wanted, and must be what comes back.
    ident = program.data(struct.pack("<II", timer.id, 0))
    program.syscall("timer_create", timer.clock, event, ident, label=label)
    program.op(OpKind.CHECK, ident, _LOW, timer.id, label=label)


def _nanoseconds(seconds: int, nano: int) -> int:
    return seconds * _SECOND + nano

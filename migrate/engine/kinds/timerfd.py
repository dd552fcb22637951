"""timerfd_create(2): a clock, when it fires next and then every so often, and how often it has without being read."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from typing import ClassVar

from migrate.engine.kernel.fdcalls import timerfd_gettime
from migrate.engine.kernel.fdinfo import FdInfo, fdinfo
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.placing import Placing
from migrate.engine.program import Buffer, Program

TFD_TIMER_ABSTIME = 1
TFD_IOC_SET_TICKS = 0x40085400  # _IOW('T', 0, u64), linux/timerfd.h; needs CONFIG_CHECKPOINT_RESTORE
_SECOND = 10**9
_CLOSE = 100_000  # nanoseconds around a question that tell the time of it well enough
_LOOKS = 8  # else
_TRIES = 20
_PAUSE = 100e-6  # seconds between two looks at a timer of which it cannot be told yet whether it fires just now
_SOON = 10_000_000  # nanoseconds; two system calls, one after the other, are not farther apart
_POLLIN = 1
_UNBROKEN = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)  # they go on on the destination (migrate.engine.clocks)


@dataclass(frozen=True)
class TimerFd:
    """Times in nanoseconds. ``value``: how long until it fires, 0 for not armed; with TFD_TIMER_ABSTIME in
    ``settime_flags`` when it fires, by the task's clock, which goes on on the destination. ``deadline``: that of a
    periodic one that was armed without it, by an unbroken clock; else 0."""

    clock: int
    settime_flags: int
    value: int
    interval: int
    ticks: int
    deadline: int = 0

    applied: ClassVar[int] = os.O_NONBLOCK

    @classmethod
    def dump(cls, file: OpenFile) -> TimerFd | None:
        info, read_at = file.info, 0
        clock, flags = int(info.one("clockid")), int(info.one("settime flags"), 8)
        interval, value = _time(info, "it_interval"), _time(info, "it_value")
        absolute = bool(flags & TFD_TIMER_ABSTIME)
        exactly = absolute or bool(interval) and clock in _UNBROKEN
        if interval or absolute and value or _undecided(info):
            info, value, read_at = _best_look(file, exactly)
        ticks = int(info.one("ticks"))
        # A period may be too short to be met running; it is counted in the ticks, and the next is a whole one away.
        if ticks:
            value = value or interval
        when = value + file.dump.at(clock, read_at) if value and exactly else 0
        if absolute:
            return cls(clock, flags, when, interval, ticks)
        return cls(clock, flags, value, interval, ticks, when)

    def still_good(self, file: OpenFile) -> bool:
        return not self.value

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        program, label = placing.program, placing.label
        number = placing.call("timerfd_create", self.clock, os.O_CLOEXEC | flags & os.O_NONBLOCK)
        flags, value, ticks = self.settime_flags, self.value, self.ticks
        when = value if flags & TFD_TIMER_ABSTIME else self.deadline
        running = bool(value and ticks)  # to set the ticks then loses what was counted since it was armed
        if running and 0 < ticks * self.interval < when:
            # Armed for the first that was not read, it counts all of them itself. (Whether a timer was set by its
            # deadline makes no difference to it, but where its clock can be set.)
            flags, value, ticks = flags | TFD_TIMER_ABSTIME, when - ticks * self.interval, 0
        setting = program.data(struct.pack("<4q", *divmod(self.interval, _SECOND), *divmod(value, _SECOND)))
        program.syscall("timerfd_settime", number, flags, setting, 0, label=label)
        if ticks and 0 < value < _SOON:
            # One that has fired does not run until it is asked (timerfd_tmrproc(), fs/timerfd.c): nothing is lost then.
            descriptor = program.data(struct.pack("<ihh", number, _POLLIN, 0))
            program.syscall("ppoll", descriptor, 1, _second(program), 0, 0, label=f"{label}: it fires", expect=1)
            ticks += 1
        if ticks:
            unread = program.data(struct.pack("<Q", ticks))
            program.syscall("ioctl", number, TFD_IOC_SET_TICKS, unread, label=label)
        return number

def _second(program: Program) -> Buffer:
    return program.data(struct.pack("<2q", 1, 0))


def _best_look(file: OpenFile, exactly: bool) -> tuple[FdInfo, int, int]:
    """What fdinfo says of a timer, how long until it fires, and when that was by our CLOCK_MONOTONIC; nanoseconds.
    ``exactly``: the latter matters."""
    looks = []
    with file.duplicate() as fd:
        for _ in range(_TRIES):
            before = time.monotonic_ns()
            # A periodic timer that fired is not started again until someone asks; then the periods since are counted.
            value = timerfd_gettime(fd)
            after = time.monotonic_ns()
            info = fdinfo(file.dump.proc.text(f"fdinfo/{file.numbers[0]}"))
            look = after - before, info, value, (before + after) // 2
            left = _time(info, "it_value")
            if _undecided(info):
                time.sleep(_PAUSE)
                continue
            if left > value or bool(left) != bool(value):
                continue  # it fired between the two, where we lost the CPU, and fdinfo has counted that
            looks.append(look)
            if not exactly or look[0] < _CLOSE or len(looks) == _LOOKS:
                break
    # How long it still has is true for the moment of the question, and we may lose the CPU around it.
    _, info, value, read_at = min(looks or [look], key=lambda each: each[0])
    return info, value, read_at


def _undecided(info: FdInfo) -> bool:
    """It is not armed; or its time is up, and it has not been counted yet. Only waiting tells them apart."""
    return not _time(info, "it_value") and info.one("ticks") == "0"


def _time(info: FdInfo, name: str) -> int:
    seconds, nanoseconds = info.one(name).strip("()").split(",")
    return int(seconds) * _SECOND + int(nanoseconds)

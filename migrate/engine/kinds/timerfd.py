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

TFD_TIMER_ABSTIME = 1
TFD_IOC_SET_TICKS = 0x40085400  # _IOW('T', 0, u64), linux/timerfd.h; needs CONFIG_CHECKPOINT_RESTORE
_SECOND = 10**9
_CLOSE = 100_000  # nanoseconds around a question that tell the time of it well enough
_LOOKS = 8  # else
_TRIES = 20


@dataclass(frozen=True)
class TimerFd:
    """Times in nanoseconds. ``value``: how long until it fires, 0 for not armed; with TFD_TIMER_ABSTIME in
    ``settime_flags`` when it fires, by the task's clock, which goes on on the destination."""

    clock: int
    settime_flags: int
    value: int
    interval: int
    ticks: int

    applied: ClassVar[int] = os.O_NONBLOCK

    @classmethod
    def dump(cls, file: OpenFile) -> TimerFd | None:
        info = file.info
        value, read_at = _time(info, "it_value"), 0
        interval = _time(info, "it_interval")
        clock, flags = int(info.one("clockid")), int(info.one("settime flags"), 8)
        absolute = bool(flags & TFD_TIMER_ABSTIME)
        if interval or absolute and value:
            info, value, read_at = _best_look(file, absolute)
        # A period may be too short to be met running; it is counted in the ticks, and the next is a whole one away.
        value = value or interval
        if value and absolute:
            value += file.dump.at(clock, read_at or time.monotonic_ns())
        return cls(clock, flags, value, interval, int(info.one("ticks")))

    def still_good(self, file: OpenFile) -> bool:
        return not self.value and not self.interval

    def needs(self, where: str, flags: int) -> list[FileNeed]:
        return []

    def open(self, placing: Placing, flags: int) -> int:
        program, label = placing.program, placing.label
        number = placing.call("timerfd_create", self.clock, os.O_CLOEXEC | flags & os.O_NONBLOCK)
        value, ticks = self.value, self.ticks
        if self.settime_flags & TFD_TIMER_ABSTIME and 0 < ticks * self.interval < value:
            # Armed for the first that was not read, it counts all of them itself. The next may have passed, too; it
            # would fire at once, and to set the ticks then would lose that one (timerfd_ioctl, fs/timerfd.c).
            value, ticks = value - ticks * self.interval, 0
        when = program.data(struct.pack("<4q", *divmod(self.interval, _SECOND), *divmod(value, _SECOND)))
        program.syscall("timerfd_settime", number, self.settime_flags, when, 0, label=label)
        if ticks:
            unread = program.data(struct.pack("<Q", ticks))
            program.syscall("ioctl", number, TFD_IOC_SET_TICKS, unread, label=label)
        return number


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
            if left > value or bool(left) != bool(value):
                continue  # it fired between the two, where we lost the CPU, and fdinfo has counted that
            looks.append(look)
            if not exactly or look[0] < _CLOSE or len(looks) == _LOOKS:
                break
    # How long it still has is true for the moment of the question, and we may lose the CPU around it.
    _, info, value, read_at = min(looks or [look], key=lambda each: each[0])
    return info, value, read_at


def _time(info: FdInfo, name: str) -> int:
    seconds, nanoseconds = info.one(name).strip("()").split(",")
    return int(seconds) * _SECOND + int(nanoseconds)

"""The clocks go on: a process must never see CLOCK_MONOTONIC go back, nor its deadlines move by years.

Between two boots these clocks differ by anything, so the restoree gets a time namespace whose offset makes up for it.
The offset is reckoned so that the destination is never behind: the error is at most the round trip, forward.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from migrate.engine.kernel.timens import NSEC, Offsets, own_offsets
from migrate.engine.program import Program

CLONE_NEWTIME = 0x80  # unshare(2): for the children that come
AT_FDCWD = -100


@dataclass(frozen=True)
class Clocks:
    """A machine's own clocks, without any time namespace, at one moment; nanoseconds."""

    boot_id: str
    monotonic: int
    boottime: int

    @classmethod
    def here(cls) -> Clocks:
        """Of this machine, now."""
        own = own_offsets()
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot_id = file.read().strip()
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - own.boottime
        return cls(boot_id, time.clock_gettime_ns(time.CLOCK_MONOTONIC) - own.monotonic, boottime)


def wanted_offsets(task: Offsets, here: Clocks, there: Clocks) -> Offsets:
    """Of a time namespace on the destination in which the clocks of the task go on. ``here`` was read after ``there``.
    Of one boot (two containers of a machine) both sides have the same clocks to the nanosecond."""
    if here.boot_id == there.boot_id:
        return task
    return Offsets(
        here.monotonic + task.monotonic - there.monotonic,
        here.boottime + task.boottime - there.boottime,
    )


def behind(given: Offsets, task: Offsets, here: Clocks, there: Clocks) -> int:
    """Nanoseconds by which the clocks of the task would go back if it came to the destination now, in the time
    namespace ``given``: what that machine's clocks have lost on ours since it was reckoned. ``here`` was read after
    ``there``, so it is rather less."""
    wanted = wanted_offsets(task, here, there)
    return max(wanted.monotonic - given.monotonic, wanted.boottime - given.boottime, 0)


def enter_time_namespace(program: Program, wanted: Offsets) -> None:
    """Children of whoever runs this are made in a time namespace of that offset. Needs CAP_SYS_TIME and
    CAP_SYS_ADMIN."""
    label = "time namespace"
    program.syscall("unshare", CLONE_NEWTIME, label=label)
    path = program.string("/proc/self/timens_offsets")
    fd = program.syscall("openat", AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, 0, label=label)
    # Nanoseconds are never negative (proc_timens_set_offset, kernel/time/namespace.c).
    lines = (
        "{} {} {}\n".format(name, *divmod(offset, NSEC))
        for name, offset in zip(("monotonic", "boottime"), wanted, strict=True)
    )
    text = "".join(lines).encode()
    program.syscall("write", fd, program.data(text), len(text), label=label, expect=len(text))
    program.syscall("close", fd, label=label)

"""The clocks go on: a process must never see CLOCK_MONOTONIC go back, nor its deadlines move by years.

Between two boots these clocks differ by anything, so the restoree gets a time namespace whose offset makes up for it.
The offset is reckoned so that the destination is never behind: the error is at most the round trip, forward.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from migrate.engine.kernel.timens import NSEC, Offsets, own_offsets
from migrate.engine.program import Program, Results

CLONE_NEWTIME = 0x80  # unshare(2): for the children that come
AT_FDCWD = -100
TIMENS_OFFSETS = "/proc/self/timens_offsets"


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


def enter_time_namespace(program: Program, wanted: Offsets) -> Callable[[Results], str]:
    """Children of whoever runs this are made in a time namespace of that offset; what stood in the way, in words, or
    nothing.

    It is tried, for there is no other way to know: a machine may let nobody have another time namespace
    (/proc/sys/user/max_time_namespaces: ENOSPC), and a container may be without CAP_SYS_ADMIN, for unshare(2), or
    CAP_SYS_TIME, for the offsets (time_namespaces(7)).
    """
    label = "time namespace"
    path = program.string(TIMENS_OFFSETS)
    slots = {"unshare": program.syscall("unshare", CLONE_NEWTIME, label=label, ignore=True)}
    flags = os.O_WRONLY | os.O_CLOEXEC
    fd = slots[TIMENS_OFFSETS] = program.syscall("openat", AT_FDCWD, path, flags, 0, label=label, ignore=True)
    # Nanoseconds are never negative (proc_timens_set_offset, kernel/time/namespace.c).
    lines = (
        "{} {} {}\n".format(name, *divmod(offset, NSEC))
        for name, offset in zip(("monotonic", "boottime"), wanted, strict=True)
    )
    text = "".join(lines).encode()
    write = f"write to {TIMENS_OFFSETS}"
    # Where nothing was unshared, those of the namespace that we are in are asked for, which cannot be changed (EACCES).
    slots[write] = program.syscall("write", fd, program.data(text), len(text), label=label, ignore=True)
    program.syscall("close", fd, label=label, ignore=True)

    def decode(results: Results) -> str:
        found = ((name, results.of(slot)) for name, slot in slots.items())
        return next((f"{name}: {os.strerror(-result)}" for name, result in found if result < 0), "")

    return decode

"""Time namespaces (time_namespaces(7), Linux 5.6): CLOCK_MONOTONIC and CLOCK_BOOTTIME with an offset."""

from __future__ import annotations

from typing import NamedTuple

from migrate.engine.kernel.proc import Proc

NSEC = 10**9


class Offsets(NamedTuple):
    """Nanoseconds that a time namespace adds to the clocks of the machine."""

    monotonic: int = 0
    boottime: int = 0


def offsets(text: str) -> Offsets:
    """From /proc/PID/timens_offsets; an empty text (a kernel without time namespaces) adds nothing."""
    found = {}
    for line in text.splitlines():
        name, seconds, nanoseconds = line.split()
        # the offsets of a namespace made before 5.12 are shown by clock id
        found[{"1": "monotonic", "7": "boottime"}.get(name, name)] = int(seconds) * NSEC + int(nanoseconds)
    return Offsets(**found)


def task_offsets(proc: Proc) -> Offsets:
    """Of the time namespace that a process is in."""
    try:
        return offsets(proc.text("timens_offsets"))
    except FileNotFoundError:
        return Offsets()


def own_offsets() -> Offsets:
    """Of the time namespace that we are in."""
    try:
        with open("/proc/self/timens_offsets") as file:
            return offsets(file.read())
    except FileNotFoundError:
        return Offsets()

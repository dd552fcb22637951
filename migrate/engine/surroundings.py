"""What a process is in: its control group, the names of its host; and what of that cannot be moved."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.engine import core_scheduling, namespaces
from migrate.engine.hostname import HostNames
from migrate.engine.kernel.proc import Proc
from migrate.errors import Problem


@dataclass(frozen=True)
class Surroundings:
    """``cgroup``: its control group of version 2, as /proc/PID/cgroup shows it, or empty; ``names``: of a UTS namespace
    that is not ours, or None."""

    cgroup: str
    names: HostNames | None

    @classmethod
    def of(cls, proc: Proc, where: str) -> tuple[Surroundings, list[Problem]]:
        """``where``: "pid 812"."""
        problems = namespaces.problems(proc, where) + core_scheduling.problems(proc)
        names = None
        try:
            names = HostNames.of(proc)
        except PermissionError:
            problems.append(Problem(where, "is in a UTS namespace that is not ours", "run as root"))
        return cls(_cgroup(proc), names), problems


def _cgroup(proc: Proc) -> str:
    """The line of version 2 has the number 0 (cgroups(7), /proc/PID/cgroup)."""
    try:
        lines = proc.text("cgroup").splitlines()
    except FileNotFoundError:
        return ""  # a kernel without
    return next((line[3:] for line in lines if line.startswith("0::")), "")

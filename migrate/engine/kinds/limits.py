"""The sixteen resource limits (getrlimit(2)).

They are read from /proc/PID/limits: prlimit(2) on a task of another user is EPERM for a root without CAP_SYS_RESOURCE,
reading the file is not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from migrate.engine.kernel.accounting import RESOURCES, RLIM_INFINITY, limits
from migrate.engine.program import Program
from migrate.errors import Problem

RLIMIT_NOFILE = 7
_RLIMIT = struct.Struct("<QQ")
_NAMES = {resource: name for name, resource in RESOURCES.items()}


@dataclass(frozen=True)
class Limits:
    """(soft, hard) by resource number; RLIM_INFINITY for unlimited."""

    limits: tuple[tuple[int, int], ...]

    @classmethod
    def from_text(cls, text: str) -> Limits:
        """From the content of /proc/PID/limits."""
        return cls(_parse(text))

    def problems(self, where: str, destination: Limits, can_raise: bool) -> list[Problem]:
        """Hard limits above those of the agent at the ``destination``, where it cannot raise them (no
        CAP_SYS_RESOURCE)."""
        if can_raise:
            return []
        return [
            Problem(
                where,
                f"{_NAMES[resource].lower()}: hard limit {_text(hard)}, at the destination {_text(there)}, which"
                " cannot be raised without CAP_SYS_RESOURCE",
                "lower it with prlimit, or raise the destination's",
            )
            for resource, ((_, hard), (_, there)) in enumerate(zip(self.limits, destination.limits, strict=True))
            if hard > there
        ]

    def restore_raised(self, program: Program, destination: Limits) -> None:
        """Those that are above the ``destination``'s, while we are root: what is about to be made may need them
        (descriptors of high numbers, locked memory)."""
        pairs = zip(self.limits, destination.limits, strict=True)
        for resource, ((soft, hard), (soft_there, hard_there)) in enumerate(pairs):
            if hard > hard_there or soft > soft_there:
                _set(program, resource, max(soft, soft_there), max(hard, hard_there))

    def restore(self, program: Program, destination: Limits) -> None:
        """As they were. Those that the restoree has inherited from the ``destination``'s agent already are left
        alone, but
        for that of open files, which was raised for the descriptors. Nothing may be made after this that a limit could
        forbid. Once those above are raised this only lowers, so it needs no privilege."""
        for resource, (wanted, there) in enumerate(zip(self.limits, destination.limits, strict=True)):
            if wanted != there or resource == RLIMIT_NOFILE:
                _set(program, resource, *wanted)


@lru_cache(maxsize=8)
def _parse(text: str) -> tuple[tuple[int, int], ...]:
    # Kept from the rehearsal: parsing takes 50 us of the time that the task is frozen, and they seldom change.
    found = limits(text)
    return tuple((found[resource].soft, found[resource].hard) for resource in sorted(found))


def _set(program: Program, resource: int, soft: int, hard: int) -> None:
    raw = program.data(_RLIMIT.pack(soft, hard))
    program.syscall("prlimit64", 0, resource, raw, 0, label=f"limit: {_NAMES[resource].lower()}")


def _text(value: int) -> str:
    return "unlimited" if value == RLIM_INFINITY else str(value)

"""Seccomp: strict mode, and the filters of each thread, the oldest first (seccomp(2)).

Filters are bytes of classic BPF. The kernel gives them back to a tracer (PTRACE_SECCOMP_GET_FILTER, ptrace(2)), and not
to the thread itself. They are put back as the last thing of all, by the overseer from outside: whatever a thread did
for its own restoring afterwards, its filters would see. The overseer suspends them (PTRACE_O_SUSPEND_SECCOMP) until it
unties the thread, so that what is left to do, unmapping the restorer, is not theirs to judge either.

The filters that all threads of a process have in common are installed once, for all (SECCOMP_FILTER_FLAG_TSYNC): a
thread whose filters are not the very ones of another, or their ancestors, could not be synchronised with it any more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from migrate.errors import Problem

NONE, STRICT, FILTER = 0, 1, 2  # of the line Seccomp of proc_pid_status(5)
SET_MODE_STRICT, SET_MODE_FILTER = 0, 1
FLAG_TSYNC, FLAG_LOG, FLAG_SPEC_ALLOW = 1, 2, 4
CAP_SYS_ADMIN = 21
_RET, _CLASS, _SOURCE = 0x06, 0x07, 0x18  # linux/bpf_common.h: BPF_RET, BPF_CLASS(), BPF_RVAL()
_RET_ACTION_FULL, _RET_USER_NOTIF = 0xFFFF_0000, 0x7FC0_0000  # linux/seccomp.h
_INSTRUCTION = struct.Struct("<HBBI")  # struct sock_filter
_PROGRAM = struct.Struct("<HxxxxxxQ")  # struct sock_fprog


@dataclass(frozen=True)
class Filter:
    """``flags``: those that are still to be known, SECCOMP_FILTER_FLAG_LOG (PTRACE_SECCOMP_GET_METADATA). That one was
    installed with SPEC_ALLOW shows in the speculation controls of the thread alone, which are restored as such."""

    flags: int
    code: bytes  # of struct sock_filter

    @property
    def notifies(self) -> bool:
        """Whether a call may have to wait for a listener's word. A value that is computed is taken to be one of the
        constants in the program."""
        found = list(_INSTRUCTION.iter_unpack(self.code))
        returns = [(code & _SOURCE, k) for code, _, _, k in found if code & _CLASS == _RET]
        if any(source for source, _ in returns):
            returns += [(0, k) for _, _, _, k in found]
        return any(not source and k & _RET_ACTION_FULL == _RET_USER_NOTIF for source, k in returns)


@dataclass(frozen=True)
class Seccomp:
    """Of one thread."""

    mode: int = NONE
    filters: tuple[Filter, ...] = ()

    @classmethod
    def from_outside(cls, status: bytes, filters: Sequence[tuple[int, bytes]]) -> Seccomp:
        """``status``: of the thread; ``filters``: flags and code of each, as a tracer reads them."""
        return cls(mode_of(status), tuple(Filter(*each) for each in filters))

    def refusals(self, where: str) -> list[Problem]:
        """What cannot be moved anywhere."""
        if self.mode not in (NONE, STRICT, FILTER):
            return [Problem(where, f"is under seccomp in a mode that is unknown ({self.mode})")]
        if self.mode == FILTER and not self.filters:
            return [Problem(where, "has seccomp filters that the kernel does not show", "it needs CAP_SYS_ADMIN here")]
        if any(each.notifies for each in self.filters):
            what = "has a seccomp filter that asks another process (SECCOMP_RET_USER_NOTIF), which stays behind"
            return [Problem(where, what)]
        return []

    def problems(self, where: str, effective: int, mode: int | None) -> list[Problem]:
        """What the destination cannot give. ``effective``: capabilities of the agent there; ``mode``: whether it is
        under seccomp itself, None where the kernel there has none."""
        if self.mode == NONE:
            return []
        if mode is None:
            return [Problem(where, "is under seccomp, which the destination's kernel lacks", "it needs CONFIG_SECCOMP")]
        if mode != NONE or not effective >> CAP_SYS_ADMIN & 1:
            what = "is under seccomp, and the agent there may not suspend that while it restores"
            return [Problem(where, what, "it needs CAP_SYS_ADMIN, and not to be under seccomp itself")]
        return []

    def held(self, no_new_privs: bool, effective: int) -> int:
        """The capabilities that a thread must have, besides its own, until its filters are installed (seccomp(2))."""
        if self.mode != FILTER or no_new_privs:
            return 0
        return (1 << CAP_SYS_ADMIN) & ~effective


@dataclass(frozen=True)
class Install:
    """A filter, or strict mode, for one thread. ``thread``: its position."""

    thread: int
    filter: Filter | None
    flags: int = 0

    @property
    def label(self) -> str:
        """In words."""
        return "strict mode of seccomp" if self.filter is None else "seccomp filter"

    def call(self, programs: dict[bytes, int]) -> tuple[int, ...]:
        """The arguments of seccomp(2). ``programs``: where the struct sock_fprog of each code is."""
        if self.filter is None:
            return SET_MODE_STRICT, 0, 0
        return SET_MODE_FILTER, self.flags | self.filter.flags | FLAG_SPEC_ALLOW, programs[self.filter.code]


def plan(threads: Sequence[tuple[Seccomp, bool]]) -> list[Install]:
    """What is to be installed by which thread, in this order. ``threads``: of a process, each with its no_new_privs.

    Who installs for all passes its no_new_privs on to all, so that must be one without where there is any.
    """
    common = _common([state.filters for state, _ in threads]) if len(threads) > 1 else []
    caller = next((at for at, (_, no_new_privs) in enumerate(threads) if not no_new_privs), 0)
    found = [Install(caller, each, FLAG_TSYNC) for each in common]
    for at, (state, _) in enumerate(threads):
        found += [Install(at, each) for each in state.filters[len(common) :]]
        if state.mode == STRICT:
            found.append(Install(at, None))
    return found


def _common(all_of_them: Sequence[Sequence[Filter]]) -> list[Filter]:
    """Those with which all begin."""
    found: list[Filter] = []
    for first, *others in zip(*all_of_them, strict=False):
        if any(other != first for other in others):
            break
        found.append(first)
    return found


def layout(installs: Sequence[Install], base: int) -> tuple[bytes, dict[bytes, int]]:
    """What must lie at the address ``base`` for `Install.call`, and where in it the program of each code is."""
    content, places = bytearray(), {}
    for each in installs:
        if each.filter is None or each.filter.code in places:
            continue
        code = each.filter.code
        places[code] = base + len(content)
        content += _PROGRAM.pack(len(code) // _INSTRUCTION.size, base + len(content) + _PROGRAM.size) + code
    return bytes(content), places


def mode_of(status: bytes) -> int:
    """From the line Seccomp, which is missing where the kernel has none."""
    at = status.find(b"\nSeccomp:\t")
    return int(status[at + 10 : at + 11]) if at >= 0 else NONE

"""What a process gives back to System V semaphores when it ends (SEM_UNDO, semop(2)), which nothing shows.

It can be asked for all the same, without changing anything. A semop(2) of several operations is done as a whole or not
at all, and one of them is refused with ERANGE when what is to be given back would leave the range of -32768 to 32767
(perform_atomic_semop_slow(), ipc/sem.c; SEMAEM, linux/sem.h). So an operation with SEM_UNDO that only just fits, and
behind it one that would have to wait (EAGAIN), tell whether there is as much as a given amount. The value is put where
there is room for that by operations before it, and comes to where it was with the rest.

All of it is asked by the process itself, for there is a list of these for each (or for several threads, which share
it: CLONE_SYSVSEM). Who may not change the semaphores (EACCES) gives nothing back either.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

from migrate.engine.kinds.sysv import IPC_NOWAIT, SEM_UNDO, SEMBUF, SEMVMX, SemaphoreSet, Undo
from migrate.engine.program import Program, Results, Slot

_FINE = 48  # thresholds that are asked for at a time
_GONE = (-errno.EACCES, -errno.EINVAL, -errno.EIDRM)


@dataclass
class _Range:
    """Of one semaphore: at least ``low`` and less than ``limits`` tell is given back, or taken away (``sign`` -1); of
    ``sign`` 0 it is neither, as far as is known."""

    id: int
    number: int
    value: int
    sign: int = 0
    low: int = 0
    limits: dict[int, int] = field(default_factory=lambda: {1: SEMVMX + 1, -1: SEMVMX + 2})

    @property
    def open(self) -> bool:
        return self.high - self.low > 1

    def thresholds(self) -> list[tuple[int, int]]:
        """What to ask for next: sign and amount."""
        if not self.sign:
            return [(sign, amount) for sign in (1, -1) for amount in (1, 2)]
        step = max(1, (self.high - self.low) // _FINE)
        return [(self.sign, amount) for amount in range(self.low + 1, self.high, step)]

    def learn(self, sign: int, amount: int, there: bool) -> None:
        if there:
            self.sign, self.low = sign, max(self.low, amount)
        else:
            self.limits[sign] = min(self.limits[sign], amount)

    @property
    def high(self) -> int:
        return self.limits[self.sign] if self.sign else SEMVMX + 2


class Search:
    """For one process, in as few programs as it takes: one where there is nothing, and a few more where there is."""

    def __init__(self, sets: Sequence[SemaphoreSet]) -> None:
        self._open = [
            _Range(each.rights.id, number, value) for each in sets for number, value in enumerate(each.values)
        ]
        self._asked: list[tuple[_Range, int, int, Slot]] = []
        self.found: list[Undo] = []

    def program(self) -> Program | None:
        """The next one for the process to run; None: all is known."""
        if not self._open:
            return None
        program = Program("what is given back to semaphores")
        self._asked = []
        for each in self._open:
            for sign, amount in each.thresholds():
                steps = _at_least(each.value, amount) if sign > 0 else _at_most(each.value, -amount)
                raw = b"".join(SEMBUF.pack(each.number, by, flags | IPC_NOWAIT) for by, flags in steps if by)
                args = each.id, program.data(raw), len(raw) // SEMBUF.size
                slot = program.syscall("semop", *args, label=f"semaphores {each.id}", ignore=True)
                self._asked.append((each, sign, amount, slot))
        return program

    def learn(self, results: Results) -> None:
        """What came of it. OSError for what should not have."""
        gone: set[int] = set()
        for each, sign, amount, slot in self._asked:
            result = results.of(slot)
            if result in _GONE:
                gone.add(each.id)
            elif result in (-errno.ERANGE, -errno.EAGAIN):
                each.learn(sign, amount, result == -errno.ERANGE)
            else:
                raise OSError(-result, f"semop that asks for what is given back: {result}")
        known = [each for each in self._open if each.id not in gone]
        done = [each for each in known if each.sign and not each.open]
        self.found += [Undo(each.id, each.number, each.value, each.sign * each.low) for each in done]
        self._open = [each for each in known if each.sign and each.open]


def _at_least(value: int, amount: int) -> list[tuple[int, int]]:
    """Operations that fail with ERANGE if ``amount``, from 1 up, or more is given back, and else with EAGAIN."""
    return [(SEMVMX - value, 0), (amount - 1 - SEMVMX, SEM_UNDO), (-SEMVMX, 0)]


def _at_most(value: int, amount: int) -> list[tuple[int, int]]:
    """The same of what is taken away: of ``amount``, from -1 down to -32768, or less."""
    by = SEMVMX + 2 + amount
    if amount == -1:  # one operation is not enough
        return [(-value, 0), (SEMVMX, SEM_UNDO), (-SEMVMX, 0), (1, SEM_UNDO), (-1, 0), (-1, 0)]
    return [(-value, 0), (by, SEM_UNDO), (-by, 0), (-1, 0)]

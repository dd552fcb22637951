"""What a process gives back to semaphores when it ends is found out without changing anything."""

from __future__ import annotations

import ctypes
import os
import random
import struct
from collections.abc import Iterator

import pytest

from migrate.engine.kinds.sysv import (
    GETALL,
    IPC_CREAT,
    IPC_NOWAIT,
    IPC_PRIVATE,
    IPC_RMID,
    SEM_UNDO,
    SEMBUF,
    SETALL,
    Rights,
    SemaphoreSet,
    Undo,
)
from migrate.engine.kinds.sysv_undo import Search
from migrate.engine.program import Program
from migrate.pie import local

COUNT = 3
_libc = ctypes.CDLL(None, use_errno=True)


class Semaphores:
    """A set of our own."""

    def __init__(self) -> None:
        self.id = _libc.semget(IPC_PRIVATE, COUNT, IPC_CREAT | 0o600)
        assert self.id >= 0

    def set(self, *values: int) -> None:
        """This also forgets what anybody gives back."""
        assert _libc.semctl(self.id, 0, SETALL, struct.pack("<3H", *values)) == 0

    @property
    def values(self) -> tuple[int, ...]:
        room = ctypes.create_string_buffer(2 * COUNT)
        assert _libc.semctl(self.id, 0, GETALL, room) == 0
        return struct.unpack("<3H", room.raw)

    def by(self, number: int, *amounts: int, flags: int = SEM_UNDO) -> None:
        for amount in amounts:
            one = SEMBUF.pack(number, amount, flags | IPC_NOWAIT)
            assert _libc.semop(self.id, one, 1) == 0, os.strerror(ctypes.get_errno())

    def told(self) -> dict[int, int]:
        """What is found, by number; and nothing has changed."""
        before = self.values
        search = Search([SemaphoreSet(Rights(0, self.id, 0o600, 0, 0, 0, 0), before)])
        programs = 0
        while (program := search.program()) is not None:
            search.learn(local.run(program.link()))
            programs += 1
        assert self.values == before and programs <= 5
        return {undo.number: undo.adjustment for undo in search.found}


@pytest.fixture
def semaphores() -> Iterator[Semaphores]:
    made = Semaphores()
    try:
        yield made
    finally:
        assert _libc.semctl(made.id, 0, IPC_RMID) == 0


def test_nothing_is_given_back(semaphores: Semaphores) -> None:
    semaphores.set(0, 1, 32767)
    assert semaphores.told() == {}


@pytest.mark.parametrize("amount", [1, 2, 3, 700, 701, 32766, 32767])
def test_any_amount(semaphores: Semaphores, amount: int) -> None:
    semaphores.set(32767, 0, 5)
    semaphores.by(0, -amount)
    semaphores.by(1, amount)
    assert semaphores.told() == {0: amount, 1: -amount}
    semaphores.by(0, amount)
    semaphores.by(1, -amount)
    assert semaphores.told() == {}


def test_the_least(semaphores: Semaphores) -> None:
    """-32768, which takes two operations."""
    semaphores.set(0, 0, 0)
    semaphores.by(1, 32767)
    semaphores.by(1, -1, flags=0)
    semaphores.by(1, 1)
    assert semaphores.told() == {1: -32768}


def test_it_is_given_back_there(semaphores: Semaphores) -> None:
    """Restored as it was found, at any value of the semaphore."""
    chosen = random.Random(5)
    for _ in range(60):
        values = [chosen.choice([0, 1, 77, 32766, 32767, chosen.randrange(32768)]) for _ in range(COUNT)]
        wanted = {n: chosen.choice([1, -1, 32767, -32767, -32768, chosen.randrange(-32768, 0)]) for n in range(COUNT)}
        semaphores.set(*values)
        program = Program("undo")
        for number, amount in wanted.items():
            Undo(semaphores.id, number, values[number], amount).restore(program)
        results = local.run(program.link())
        assert results.failed is None
        assert semaphores.values == tuple(values) and semaphores.told() == wanted

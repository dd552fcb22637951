"""Whose System V objects are: found without changing them, and refused by name when others use them as well."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from migrate.engine.ipc import IpcReader
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.sysv import IPC_CREAT, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, SEMBUF, Ipc, Message
from migrate.engine.kinds.vma_read import AddressSpaceReader
from tests.tasks import wait_until

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p


def made(id: int) -> int:
    assert id >= 0, os.strerror(ctypes.get_errno())
    return id


@pytest.fixture
def segment() -> Iterator[int]:
    id = made(_libc.shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0o600))
    yield id
    _libc.shmctl(id, IPC_RMID, None)


@pytest.fixture
def semaphores() -> Iterator[int]:
    id = made(_libc.semget(IPC_PRIVATE, 2, IPC_CREAT | 0o600))
    yield id
    assert _libc.semctl(id, 0, IPC_RMID) == 0


@pytest.fixture
def queue() -> Iterator[int]:
    id = made(_libc.msgget(IPC_PRIVATE, IPC_CREAT | 0o600))
    yield id
    assert _libc.msgctl(id, IPC_RMID, None) == 0


def attach(id: int) -> None:
    assert _libc.shmat(id, None, 0) != ctypes.c_void_p(-1).value


def post(id: int, number: int) -> None:
    assert _libc.semop(id, SEMBUF.pack(number, 1, 0), 1) == 0


def send(id: int, type: int, content: bytes) -> None:
    assert _libc.msgsnd(id, struct.pack("<q", type) + content, len(content), IPC_NOWAIT) == 0


@contextmanager
def process(*doing: Callable[[], object]) -> Iterator[int]:
    """A child that does this, and then sleeps until the end of the block."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(ready)
            for each in doing[:-1]:
                each()
            os.write(done, b".")
            doing[-1]()
            time.sleep(1000)
        finally:
            os._exit(1)
    try:
        os.close(done)
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def nothing() -> None:
    pass


def look(*pids: int) -> tuple[Ipc, list[str]]:
    spaces = []
    for pid in pids:
        with Proc(pid) as proc:
            spaces.append(AddressSpaceReader(proc).read())
    found, problems = IpcReader().look(pids, spaces, frozen=False)
    return found, [str(problem) for problem in problems]


def test_segment_of_one_of_them(segment: int) -> None:
    with process(lambda: attach(segment), nothing) as one, process(lambda: attach(segment), nothing) as other:
        found, problems = look(one, other)
        assert not problems and [each.rights.id for each in found.segments] == [segment]
        assert found.segments[0].size == 8192 and dict(found.limits)["kernel/shmmni"].isdecimal()
        _, problems = look(one)
        what = f"System V shared memory {segment} is also attached by others outside the tree (process {other})"
        assert problems == [f"pid {one}: {what}; end those first"]


def test_segment_that_nobody_is_attached_to() -> None:
    def make() -> None:
        made(_libc.shmget(0x7A7A7A7A, 4096, IPC_CREAT | 0o600))

    with process(make, nothing) as pid:
        id = made(_libc.shmget(0x7A7A7A7A, 0, 0))
        try:
            _, problems = look(pid)
            assert problems == [
                f"pid {pid}: System V shared memory {id}, which it has made and nobody is attached to;"
                " have it attached or removed"
            ]
        finally:
            _libc.shmctl(id, IPC_RMID, None)


def test_semaphores_by_who_used_them_last(semaphores: int) -> None:
    with process(lambda: post(semaphores, 0), nothing) as one:
        with process(nothing) as stranger:
            assert not look(stranger)[0]
        found, problems = look(one)
        assert [each.values for each in found.sets] == [(1, 0)] and not problems
        with process(lambda: post(semaphores, 1), nothing) as other:
            assert not look(one, other)[1]
            _, problems = look(one)
            what = f"System V semaphores {semaphores} that process {other} uses too, which stays behind"
            assert problems == [f"pid {one}: {what}; end that one first"]
        assert not look(one)[1]  # it has ended


def test_queue_that_is_waited_for(queue: int) -> None:
    room = ctypes.create_string_buffer(100)

    def receive() -> None:
        _libc.msgrcv(queue, room, 92, 5, 0)

    with process(nothing, receive) as pid:
        wait_until("it waits", lambda: bool(look(pid)[0].queues))
        send(queue, 3, b"three")  # and now we have used it, too
        send(queue, 1, b"")
        for _ in range(2):
            found, problems = look(pid)
            assert [each.messages for each in found.queues] == [(Message(3, b"three"), Message(1, b""))]
            what = f"System V message queue {queue} that process {os.getpid()} uses too, which stays behind"
            assert problems == [f"pid {pid}: {what}; end that one first"]


def test_somebody_else_waits(semaphores: int) -> None:
    def take() -> None:
        _libc.semop(semaphores, SEMBUF.pack(1, -1, 0), 1)

    with process(lambda: post(semaphores, 0), nothing) as one, process(nothing, take) as other:
        wait_until("it waits", lambda: bool(look(other)[0].sets))
        what = f"System V semaphores {semaphores} that a process waits for which stays behind"
        assert look(one)[1] == [f"pid {one}: {what}; end that one first"]

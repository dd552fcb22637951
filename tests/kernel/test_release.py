"""The commit as the kernel sees it: an overseer that dies at any of its ops, with tracees that are ready to run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agents import journal, settling
from migrate.engine import overseer
from migrate.engine.overseer import PTRACE_INTERRUPT, PTRACE_SEIZE, STOP_EVENT, Records
from migrate.engine.program import OpKind, Program
from migrate.engine.remote_calls import WALL
from migrate.engine.restore import THREAD_FLAGS
from migrate.faults import _spoiled
from tests.kernel.restoree import Restoree, unused_pid
from tests.tasks import wait_until

THREADS = 6  # that run at once when they are let go, on however many CPUs
MANY = 400
STACKS, STACK = 0x7100_0000_0000, 16 << 10
FIFO, EFFECT = 100, 101
OPTIONS = 0x100001  # PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD
RECORDS = Records(*(journal.line(state, "b") for state in (journal.COMMITTED, journal.RELEASING, journal.RELEASED)))


class Ready:
    """A process whose threads each have one thing to do, seen from outside, as soon as they run."""

    def __init__(self, restoree: Restoree, directory: Path, threads: int = THREADS) -> None:
        self.restoree, self.effect = restoree, directory / "effect"
        fifo = directory / "fifo"
        os.mkfifo(fifo)
        self.effect.touch()
        program = Program("threads that wait for a word")
        program.syscall("mmap", STACKS, threads * STACK, 3, 0x100022, -1, 0, label="stacks", expect=STACKS)
        for path, flags, number in ((fifo, os.O_RDWR, FIFO), (self.effect, os.O_WRONLY | os.O_APPEND, EFFECT)):
            opened = program.syscall("openat", -100, program.string(str(path)), flags, 0, label=str(path))
            program.syscall("dup2", opened, number, label="its number", expect=number)
        byte, ran = program.space(8), program.data(b"x")
        self.tids = [restoree.pid]
        for index in range(threads):
            with program.branch() as child:
                program.syscall("read", FIFO, byte, 1, label="the word", expect=1)
                program.syscall("write", EFFECT, ran, 1, label="the effect", expect=1)
                program.op(OpKind.PARK, -1, label="done")
            self.tids.append(unused_pid())
            args = overseer.clone_args(program, THREAD_FLAGS, STACKS + index * STACK, STACK, self.tids[-1])
            program.clone(args, child, label=f"thread {index}")
        restoree.run(program)
        self._seize()
        with fifo.open("wb", buffering=0) as word:
            word.write(bytes(threads))  # they are stopped, and would go on with it

    def _seize(self) -> None:
        program = Program("stops")
        status = program.space(8)
        for tid in self.tids:
            if tid != self.restoree.pid:
                program.syscall("ptrace", PTRACE_SEIZE, tid, 0, OPTIONS, label=f"seize {tid}")
            program.syscall("ptrace", PTRACE_INTERRUPT, tid, 0, 0, label=f"stop {tid}")
            program.syscall("wait4", tid, status, WALL, 0, label=f"stop of {tid}", expect=tid)
            program.op(OpKind.CHECK, status, 0xFFFFFF, STOP_EVENT, label=f"stop of {tid}")
        self.restoree.oversee(program)

    def release(self) -> tuple[bytes, int, int]:
        """The commit; how many of its ops can be revoked, and how many there are."""
        made, revocable = overseer.release(self.restoree.pid, self.tids, stopped=False, stay=False, records=RECORDS)
        return made.link().image, revocable, len(made)

    def ended(self) -> bool:
        """Whether nothing of it is left but what a parent may look at."""
        return settling.fate(self.restoree.pid, self._start) == settling.GONE

    def begun(self) -> None:
        self._start = settling.start_time(self.restoree.pid)


def written(path: Path) -> list[str]:
    return [record.state for record in journal.parse(path.read_bytes(), str(path))[0]]


@pytest.mark.timeout(300)
def test_it_dies_at_every_op(tmp_path: Path) -> None:
    """Up to the one that unties the last thread nobody has run, and all are dead; from then on all run."""
    index, count = 0, 1
    while index < count:
        directory = tmp_path / str(index)
        directory.mkdir()
        path = directory / "journal"
        record = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with Restoree([], record) as restoree:
            os.close(record)
            ready = Ready(restoree, directory)
            ready.begun()
            image, revocable, count = ready.release()
            restoree.release(_spoiled(image, index, "kill"))
            if index < revocable:
                wait_until("dead", ready.ended)
                assert ready.effect.read_bytes() == b"", f"somebody ran, of op {index} of {revocable}"
                assert journal.RELEASED not in written(path)
            else:
                wait_until("all have run", lambda ready=ready: len(ready.effect.read_bytes()) == THREADS)
                assert journal.RELEASING in written(path) and not ready.ended()
        index += 1


@pytest.mark.timeout(300)
def test_it_dies_with_all_but_one_untied(tmp_path: Path) -> None:
    """Of very many: the one that is still tied must be the one that the kernel comes to first."""
    for attempt in range(2):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        record = os.open(directory / "journal", os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with Restoree([], record) as restoree:
            os.close(record)
            ready = Ready(restoree, directory, MANY)
            ready.begun()
            image, revocable, _ = ready.release()
            restoree.release(_spoiled(image, revocable - 1, "kill"))
            wait_until("dead", ready.ended)
            assert ready.effect.read_bytes() == b""


def test_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    record = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with Restoree([], record) as restoree:
        os.close(record)
        ready = Ready(restoree, tmp_path)
        ready.begun()
        time.sleep(0.05)
        assert ready.effect.read_bytes() == b""
        restoree.release(ready.release()[0])
        wait_until("all have run", lambda: len(ready.effect.read_bytes()) == THREADS)
        assert written(path) == [journal.COMMITTED, journal.RELEASING, journal.RELEASED]

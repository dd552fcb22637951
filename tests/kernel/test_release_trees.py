"""The commit of a tree as the kernel sees it: an overseer that dies at any of its ops, and who finds that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agents import journal, settling
from agents.journal import DESTINATION, PREPARED, Directory
from migrate.engine import overseer
from migrate.engine.overseer import PTRACE_INTERRUPT, PTRACE_SEIZE, STOP_EVENT, Member, Records
from migrate.engine.program import OpKind, Program
from migrate.engine.remote_calls import WALL
from migrate.engine.restore import THREAD_FLAGS
from migrate.faults import _spoiled
from tests.kernel.restoree import Restoree, unused_pid
from tests.tasks import status_field, wait_until

CHILDREN = 2
STACKS, STACK = 0x7100_0000_0000, 16 << 10
FIFO, EFFECT = 100, 101
OPTIONS = 0x100001  # PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD


class Ready:
    """A process and two children, with two threads each, of which one has something to do, seen from outside, as soon
    as it runs; all of them stopped. ``stopped``: who is to be let go as stopped."""

    def __init__(self, restoree: Restoree, directory: Path, stopped: frozenset[int] = frozenset()) -> None:
        self.restoree, self.effect = restoree, directory / "effect"
        fifo = directory / "fifo"
        os.mkfifo(fifo)
        self.effect.touch()
        self.members = []
        for position, pid in enumerate(restoree.people):
            program = Program("a thread that waits for a word")
            program.syscall("mmap", STACKS, STACK, 3, 0x100022, -1, 0, label="stack", expect=STACKS)
            for path, flags, number in ((fifo, os.O_RDWR, FIFO), (self.effect, os.O_WRONLY | os.O_APPEND, EFFECT)):
                opened = program.syscall("openat", -100, program.string(str(path)), flags, 0, label=str(path))
                program.syscall("dup2", opened, number, label="its number", expect=number)
            byte, ran = program.space(8), program.data(b"x")
            with program.branch() as child:
                program.syscall("read", FIFO, byte, 1, label="the word", expect=1)
                program.syscall("write", EFFECT, ran, 1, label="the effect", expect=1)
                program.op(OpKind.PARK, -1, label="done")
            tid = unused_pid()
            program.clone(overseer.clone_args(program, THREAD_FLAGS, STACKS, STACK, tid), child, label="thread")
            restoree.run(program, position)
            self.members.append(Member(pid, (pid, tid), 0, position in stopped))
            self._seize(pid, tid)
        with fifo.open("wb", buffering=0) as word:
            word.write(bytes(len(self.members)))  # they are stopped, and would go on with it

    def _seize(self, pid: int, tid: int) -> None:
        program = Program("stops")
        status = program.space(8)
        program.syscall("ptrace", PTRACE_SEIZE, tid, 0, OPTIONS, label=f"seize {tid}")
        for each in (pid, tid):
            program.syscall("ptrace", PTRACE_INTERRUPT, each, 0, 0, label=f"stop {each}")
            program.syscall("wait4", each, status, WALL, 0, label=f"stop of {each}", expect=each)
            program.op(OpKind.CHECK, status, 0xFFFFFF, STOP_EVENT, label=f"stop of {each}")
        self.restoree.oversee(program)

    def release(self) -> tuple[bytes, int, int]:
        """The commit; how many of its ops can be revoked, and how many there are."""
        states = (journal.COMMITTED, journal.RELEASING, journal.RELEASED)
        records = Records(*(journal.line(state, journal.boot_id()) for state in states))
        made, revocable = overseer.release_all(self.members, stay=False, records=records)
        return made.link().image, revocable, len(made)

    @property
    def ran(self) -> int:
        return len(self.effect.read_bytes())


def _prepared(directory: Directory, id: str, ready: Ready, overseer_pid: int) -> None:
    people = [settling.person(member.pid) for member in ready.members]
    halted = [member.pid for member in ready.members if member.stopped]
    with directory.open(id, DESTINATION) as record:
        record.append(
            PREPARED, overseer=settling.person(overseer_pid), restoree=people[0], others=people[1:], halted=halted
        )


@pytest.mark.timeout(400)
def test_it_dies_at_every_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the one that unties the last thread nobody has run; who asks then kills those that live. From then on all
    run, if need be because somebody has asked."""
    index, count = 0, 1
    while index < count:
        where = tmp_path / str(index)
        where.mkdir()
        monkeypatch.setenv("XDG_STATE_HOME", str(where))
        with Directory.opened() as directory:
            id = journal.new_id()
            record = directory.create(id, DESTINATION)
            with Restoree([], record.fd, CHILDREN) as restoree:
                ready = Ready(restoree, where)
                record.close()
                _prepared(directory, id, ready, restoree.overseer_pid)
                image, revocable, count = ready.release()
                restoree.release(_spoiled(image, index, "kill"))
                place = f"op {index} of {revocable} and {count}"
                if index < revocable:
                    assert ready.ran == 0, f"somebody ran, of {place}"
                told = settling.settle(directory, id, settling.ASK)
                lives = [settling.fate(*settling.person(member.pid)) for member in ready.members]
                if index < revocable:
                    assert told["outcome"] == settling.ROLLED_BACK, f"{told} of {place}"
                    assert lives == [settling.GONE] * 3 and ready.ran == 0, f"{lives} of {place}"
                else:
                    assert told["outcome"] == settling.MOVED, f"{told} of {place}"
                    assert lives == [settling.LIVES] * 3, f"{lives} of {place}"
                    wait_until("all have run", lambda ready=ready: ready.ran == 3)
        index += 1


def test_all_of_it(tmp_path: Path) -> None:
    """They run, but for one that was stopped, and none has got a signal."""
    path = tmp_path / "journal"
    record = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with Restoree([], record, CHILDREN) as restoree:
        os.close(record)
        ready = Ready(restoree, tmp_path, stopped=frozenset({1}))
        assert ready.ran == 0
        restoree.release(ready.release()[0])
        wait_until("two have run", lambda: ready.ran == 2)
        wait_until("one is stopped", lambda: status_field(restoree.people[1], "State")[0] == "T")
        for position in (0, 2):
            assert status_field(restoree.people[position], "ShdPnd") == ["0" * 16]
            assert status_field(restoree.people[position], "SigBlk") == ["0" * 16]
            assert status_field(restoree.people[position], "State")[0] == "S"
    written = [each.state for each in journal.parse(path.read_bytes(), str(path))[0]]
    assert written == [journal.COMMITTED, journal.RELEASING, journal.RELEASED]

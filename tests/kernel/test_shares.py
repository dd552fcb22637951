"""Who shares what with whom, as kcmp(2) tells of processes of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.engine.shares import ALONE, CLONE_FILES, CLONE_FS, CLONE_IO, CLONE_SYSVSEM, Sharers, Shares
from tests.tasks import children

ROOT = Path(__file__).parents[2]

# Reads commands: "clone FLAGS" makes a child like itself; "unshare FLAGS", "priority N", "exit".
PUPPET = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
def live(order, answer):
    for line in os.fdopen(order):
        name, _, number = line.partition(" ")
        if name == "unshare":
            libc.unshare(int(number))
        elif name == "priority":
            libc.syscall(251, 1, 0, 2 << 13 | int(number))
        elif name == "clone":
            again, other = os.pipe()
            child = libc.syscall(56, int(number) | 17, None, None, None, None)
            if not child:
                os.write(answer, b"%d\\n" % os.getpid())
                live(again, answer)
            os.write(answer, b"%d %d\\n" % (child, other))
            continue
        os.write(answer, b"done\\n")
    os._exit(0)
live(0, 1)
"""


class Puppets:
    """Python processes that do what they are told: the first, and those that are made."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self.process, self.pids, self.sharers = process, [process.pid], Sharers()
        self.pipes = [os.dup(process.stdin.fileno())]

    def tell(self, which: int, order: str) -> None:
        os.write(self.pipes[which], f"{order}\n".encode())
        assert self.process.stdout is not None
        answer = os.read(self.process.stdout.fileno(), 100)
        if order.startswith("clone"):
            while answer.count(b"\n") < 2:
                answer += os.read(self.process.stdout.fileno(), 100)
            child, other = next(line for line in answer.decode().splitlines() if " " in line).split()
            self.pipes.append(self._open(self.pids[which], int(other)))
            self.pids.append(int(child))

    def _open(self, pid: int, number: int) -> int:
        pidfd = os.pidfd_open(pid)
        try:
            return int(ctypes.CDLL(None).syscall(438, pidfd, number, 0))
        finally:
            os.close(pidfd)

    def find(self) -> list[Shares]:
        return self.sharers.find(self.pids, self.pids)


@contextmanager
def puppets() -> Iterator[Puppets]:
    with subprocess.Popen([sys.executable, "-c", PUPPET], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        made = Puppets(process)
        try:
            yield made
        finally:
            for pid in made.pids:
                os.kill(pid, signal.SIGKILL)
            process.wait()
            for pid in made.pids[1:]:  # orphans come to the tests
                os.waitpid(pid, 0)
            for number in made.pipes:
                os.close(number)


def test_what_is_found_at_birth_and_lost_by_unshare() -> None:
    with puppets() as some:
        first = some.pids[0]
        assert some.find() == [ALONE]
        some.tell(0, f"clone {CLONE_FILES | CLONE_FS}")
        some.tell(0, "clone 0")
        assert some.find() == [Shares(files=first, fs=first), Shares(files=first, fs=first), ALONE]
        some.tell(1, f"clone {CLONE_FILES}")
        both = Shares(files=first, fs=first)
        assert some.find() == [both, both, ALONE, Shares(files=first)]
        some.tell(0, f"unshare {CLONE_FILES}")
        second = Shares(files=some.pids[1], fs=first)
        assert some.find() == [Shares(fs=first), second, ALONE, Shares(files=some.pids[1])]
        assert children(os.getpid()) == [first]


def test_that_nothing_is_no_common_thing() -> None:
    """Of an I/O context, or of semaphores to undo: until there is one, kcmp(2) says that they are the same."""
    with puppets() as some:
        first = some.pids[0]
        some.tell(0, f"clone {CLONE_IO}")
        some.tell(0, f"clone {CLONE_SYSVSEM}")
        assert some.find() == [Shares(undo=first), ALONE, Shares(undo=first)]
        some.tell(1, "priority 5")
        some.tell(1, f"clone {CLONE_IO}")
        second = Shares(io=some.pids[1])
        assert some.find() == [Shares(undo=first), second, Shares(undo=first), second]


@pytest.mark.parametrize("priority", ["", "own"])
def test_whatever_our_own_priority_is(priority: str) -> None:
    """Who is made by us is not without an I/O context then."""
    script = (
        "import os, sys\nfrom migrate.engine.shares import Sharers\n"
        "sharers = Sharers()\npids = [int(pid) for pid in sys.argv[1:]]\n"
        "print([each.io for each in sharers.find(pids, pids)])\n"
    )
    with puppets() as some:
        some.tell(0, "clone 0")
        some.tell(0, "clone 0")
        some.tell(2, "priority 3")
        some.tell(2, f"clone {CLONE_IO}")
        command = [*(["ionice", "-c2", "-n5"] if priority else []), sys.executable, "-c", script]
        said = subprocess.run([*command, *map(str, some.pids)], capture_output=True, text=True, check=True, cwd=ROOT)
        assert said.stdout == f"[0, 0, {some.pids[2]}, {some.pids[2]}]\n"

"""Processes for tests of descriptors: one that holds what a test opens, and one in which it is restored."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from migrate.engine.image.codec import decode, encode
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import locks
from migrate.engine.kinds.descriptor_reader import DescriptorReader
from migrate.engine.kinds.descriptors import DescriptorTable
from migrate.engine.kinds.fs import FsState
from migrate.engine.kinds.opened import DumpOptions
from migrate.engine.kinds.placing import Context
from migrate.engine.program import Linked, Program
from migrate.errors import Problem
from migrate.pie.local import run

Result = TypeVar("Result")

REQUEST, ANSWER = 900, 901  # numbers of the child's ends of our pipes
LOW = 600
FROZEN = DumpOptions(frozen=True)
libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A forked process without descriptors but those for talking to it, which runs functions of ours when told."""

    def __init__(self) -> None:
        request, self._request = os.pipe()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(request, answer)
        os.close(request)
        os.close(answer)
        self.pidfd = os.pidfd_open(self.pid)
        self.proc = Proc(self.pid)
        self._actions: list[Callable[[], object]] = []

    @staticmethod
    def _live(request: int, answer: int) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.dup2(request, REQUEST)
            os.dup2(answer, ANSWER)
            os.closerange(0, REQUEST)
            os.closerange(ANSWER + 1, 2000)
            while size := os.read(REQUEST, 8):
                action = pickle.loads(_read_exactly(int.from_bytes(size, "little")))
                try:
                    reply = pickle.dumps((True, action[0](*action[1:])))
                except BaseException:
                    reply = pickle.dumps((False, traceback.format_exc()))
                os.write(ANSWER, len(reply).to_bytes(8, "little") + reply)
        finally:
            os._exit(0)

    def do(self, function: Callable[..., object], *args: object) -> object:
        """Run it there, by name; what it returns."""
        message = pickle.dumps((function, *args))
        os.write(self._request, len(message).to_bytes(8, "little"))
        while message:
            message = message[os.write(self._request, message) :]
        size = int.from_bytes(os.read(self._answer, 8), "little")
        reply = b""
        while len(reply) < size:
            reply += os.read(self._answer, size - len(reply))
        good, value = pickle.loads(reply)
        if not good:
            raise AssertionError(f"in the child:\n{value}")
        return value

    def call(self, function: Callable[..., Result], *args: object) -> Result:
        """`do` with the type of what comes back."""
        return cast(Result, self.do(function, *args))

    def reader(self, *family: int) -> DescriptorReader:
        """For dumps of it; the file system is shared with the other processes of the test."""
        return DescriptorReader(self.proc, self.pidfd, frozenset({os.getpid(), *family}))

    def dump(self, options: DumpOptions = FROZEN, family: int = 0) -> tuple[DescriptorTable, list[Problem]]:
        """Its table without our two pipes."""
        return without_ours(self.reader(family), options)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.proc.close()
        for fd in (self._request, self._answer, self.pidfd):
            os.close(fd)


def _read_exactly(size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += os.read(REQUEST, size - len(found))
    return found


def without_ours(reader: DescriptorReader, options: DumpOptions) -> tuple[DescriptorTable, list[Problem]]:
    """A dump of a child, as if it had not the pipes to us, which are its only ones that lead outside."""
    table, problems = reader.dump(options)
    ours = {f"pid {reader.proc.pid} fd {number}" for number in (REQUEST, ANSWER)}
    return table, [problem for problem in problems if problem.where not in ours]


@contextmanager
def child() -> Iterator[Child]:
    """A child for the length of a test."""
    made = Child()
    try:
        yield made
    finally:
        made.end()


def linked(table: DescriptorTable, context: Context | None = None, fs: FsState | None = None) -> list[Linked]:
    """The programs of a restore, compiled from the image of the table: nothing else travels."""
    table = decode(DescriptorTable, encode(table))
    plan = table.plan(context or Context(frozenset({REQUEST, ANSWER}), LOW))
    programs = list(plan.early())
    last = Program("descriptors")
    plan.write(last)
    if fs is not None:
        fs.restore(last)
    locks.restore(last, table.locks)
    return [program.link() for program in [*programs, last]]


def run_all(programs: list[Linked]) -> str:
    """In the child: run them; what failed, in words, or ""."""
    for program in programs:
        failed = run(program).failed
        if failed is not None:
            op, result = failed
            why = os.strerror(-result) if result < 0 else "unexpected"
            return f"{op.label}: {op.name or op.kind.name}: {result} ({why})"
    return ""


@contextmanager
def moved(
    source: Child, context: Context | None = None, between: Callable[[], object] = lambda: None
) -> Iterator[Child]:
    """Another child with everything that ``source`` had, after checking that both look the same from outside.
    ``between``: what happens once the dump is there."""
    table, problems = source.dump()
    assert problems == []
    between()
    with child() as target:
        assert target.do(run_all, linked(table, context)) == ""
        again, problems = target.dump(family=source.pid)
        assert problems == []
        assert [(d.number, d.cloexec, d.description) for d in again.descriptors] == [
            (d.number, d.cloexec, d.description) for d in table.descriptors
        ]
        yield target


def wait_for(what: str, condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Until it is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def fdinfo(pid: int, number: int) -> list[str]:
    """The lines that say what must be the same. The mount of an O_TMPFILE or memfd, inodes and eventfd ids differ."""
    lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    return [line for line in lines if not line.startswith(("ino:", "eventfd-id:", "mnt_id:", "tfd:", "it_value:"))]


def same_outside(source: Child, target: Child, *numbers: int) -> None:
    for number in numbers:
        assert fdinfo(target.pid, number) == fdinfo(source.pid, number)


def put(fd: int, number: int, inheritable: bool = True) -> None:
    """Move a descriptor to a number."""
    if fd == number:
        os.set_inheritable(fd, inheritable)
        return
    os.dup2(fd, number, inheritable)
    os.close(fd)

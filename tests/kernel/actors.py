"""Processes that play the source or the destination: they do as they are told, and run programs in themselves.

An actor is a fork of the test. It blocks all signals, as a restorer does, and takes orders from a socket: call this
function, run this program. Everything about it that only a tracer sees is looked at with ptrace from here.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cffi import FFI

from migrate.engine.kernel.accounting import timers
from migrate.engine.kernel.held import HeldFiles
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds.identity import Rseq
from migrate.engine.kinds.scheduling import cpu_mask, default_slice
from migrate.engine.kinds.task import (
    OPTIONAL_FILES,
    PROCESS_FILES,
    THREAD_FILES,
    Destination,
    Host,
    Process,
    ProcessOutside,
    Thread,
    ThreadOutside,
    collect_process,
    collect_thread,
)
from migrate.engine.program import Program, Results
from migrate.engine.tracee import ptrace
from migrate.pie import RUN, blob
from migrate.pie.local import run as run_here

_ffi = FFI()
_ffi.cdef("long syscall(long number, ...); int *__errno_location(void);")
_libc: Any = _ffi.dlopen(None)
_LENGTH = struct.Struct("<I")
ALL_SIGNALS = b"\xff" * 8


def syscall(name: str, *args: Any) -> int:
    """A bare system call; numbers, bytes or cffi pointers. OSError with the name."""
    number = {"setns": 308}.get(name, NUMBERS.get(name, -1))
    words = [_ffi.cast("long", arg) if isinstance(arg, int) else _ffi.from_buffer(arg) for arg in args]
    result = int(_libc.syscall(number, *words))
    if result < 0:
        raise OSError(_ffi.errno, f"{name}: {os.strerror(_ffi.errno)}")
    return result


class Actor:
    """A context manager; at its end the process is killed and reaped."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                ours.close()
                _play(theirs)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        self._socket = ours
        assert self.call(os.getpid) == self.pid  # it is set up now, its signals blocked

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function`` (of a module: it is pickled) returns there; its exceptions are raised here."""
        return self._order(("call", function, args))

    def run(self, program: Program) -> Results:
        """Run the program there; it must succeed."""
        linked = program.link()
        results = linked.results(self._order(("run", linked.image)))
        if results.failed is not None:
            op, result = results.failed
            raise AssertionError(f"{program.title}: {op.label}: {op.name or op.kind.name}: {os.strerror(-result)}")
        return results

    def attempt(self, program: Program) -> tuple[str, int] | None:
        """Run the program there: label and result of the op that failed, or None."""
        linked = program.link()
        failed = linked.results(self._order(("run", linked.image))).failed
        return None if failed is None else (failed[0].label, failed[1])

    def _order(self, order: tuple[Any, ...]) -> Any:
        _send(self._socket, order)
        ok, answer = _receive(self._socket)
        if not ok:
            raise answer
        return answer

    @contextmanager
    def stopped(self, tid: int | None = None) -> Iterator[int]:
        """Seized and in a ptrace-stop; let go at the end, with nothing to be seen of it."""
        tid = tid or self.pid
        ptrace.seize(tid)
        ptrace.interrupt(tid)
        wait_stop(tid)
        try:
            yield tid
        finally:
            ptrace.detach(tid)

    def close(self) -> None:
        self._socket.close()
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_stop(tid: int, seconds: float = 5.0) -> ptrace.Stop:
    """The next stop of a tracee."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stop = ptrace.wait(tid)
        if stop is not None:
            assert stop.stopped, stop
            return stop
        time.sleep(0.0002)
    raise TimeoutError(f"{tid} did not stop")


def _send(sock: socket.socket, what: Any) -> None:
    raw = pickle.dumps(what)
    sock.sendall(_LENGTH.pack(len(raw)) + raw)


def _receive(sock: socket.socket) -> Any:
    def exactly(size: int) -> bytes:
        got = b""
        while len(got) < size:
            piece = sock.recv(size - len(got))
            if not piece:
                raise EOFError("the other side has ended")
            got += piece
        return got

    return pickle.loads(exactly(_LENGTH.unpack(exactly(_LENGTH.size))[0]))


def _play(sock: socket.socket) -> None:
    syscall("rt_sigprocmask", 2, ALL_SIGNALS, 0, 8)
    # Made before any order: what is restored may forbid executable mappings.
    code = mmap.mmap(-1, len(blob()), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(blob())
    start = int(_ffi.cast("uintptr_t", _ffi.from_buffer(code)))
    function = _ffi.cast("int (*)(char *, unsigned)", start + RUN)
    while True:
        try:
            order = _receive(sock)
        except EOFError:
            return
        answer: Any
        try:
            if order[0] == "run":
                image = _ffi.new("char[]", order[1])
                function(image, 0)
                answer = True, bytes(_ffi.buffer(image, len(order[1])))
            else:
                answer = True, order[1](*order[2])
        except Exception as error:
            answer = False, error
        _send(sock, answer)


def host() -> Host:
    """This machine as a source."""
    program = Program("the slice of this process")
    decode = default_slice(program)
    online = cpu_mask(Path("/sys/devices/system/cpu/online").read_text())
    return Host(online, decode(run_here(program.link())))


def destination(timers_by_id: bool = True) -> Destination:
    """This machine as a destination."""
    own = Path("/proc/self")
    return Destination.from_texts(
        (own / "limits").read_text(),
        (own / "status").read_bytes(),
        (own / "oom_score_adj").read_text(),
        Path("/sys/devices/system/cpu/online").read_text(),
        Path("/sys/devices/system/node/online").read_text(),
        timers_by_id,
    )


@dataclass(frozen=True)
class Task:
    """A process with one thread, collected."""

    process: Process
    thread: Thread

    def as_pid(self, pid: int) -> Task:
        """The same under another number, which the kernel would have to give us on two hosts."""

        def own(number: int) -> int:
            return pid if number == self.process.pid else number

        timers = tuple(replace(timer, target=own(timer.target)) for timer in self.process.posix_timers.timers)
        process = replace(
            self.process,
            pid=pid,
            pgrp=own(self.process.pgrp),
            session=own(self.process.session),
            posix_timers=replace(self.process.posix_timers, timers=timers),
        )
        return Task(process, replace(self.thread, identity=replace(self.thread.identity, tid=pid)))


def collect(actor: Actor) -> Task:
    """Everything, as the source would, but that the actor runs the programs by itself."""
    with Proc(actor.pid) as proc, HeldFiles(proc, PROCESS_FILES, OPTIONAL_FILES) as files:
        content = {name: files.read(name) for name in (*PROCESS_FILES, *OPTIONAL_FILES)}
    with actor.stopped() as tid:
        mask = ptrace.get_signal_mask(tid)
        shared, private = (ptrace.pending_signals(tid, which) for which in (True, False))
        found = ptrace.rseq_configuration(tid)
    with Proc(actor.pid) as proc, proc.thread(actor.pid) as thread_proc, HeldFiles(thread_proc, THREAD_FILES) as files:
        status = files.read("status")
    rseq = Rseq(found.address, found.size, found.signature) if found else None

    program = Program("collect the process")
    decode_process = collect_process(program, timers(content["timers"].decode()))
    process = decode_process(actor.run(program), ProcessOutside(actor.pid, content, shared, False))
    program = Program("collect the thread")
    decode_thread = collect_thread(program, host())
    thread = decode_thread(actor.run(program), ThreadOutside(status, mask, private, rseq))
    return Task(process, thread)


def seen(actor: Actor, *names: str) -> dict[str, str]:
    """These lines of /proc/PID/status."""
    lines = Path(f"/proc/{actor.pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: fields[name].strip() for name in names}

"""Stopping a process with all its threads, looking at it, and letting it go as it was."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from migrate.engine.kernel.executable import is_ia32
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.detour import Dispositions, ProcessEnded, interrupted_sequences, look
from migrate.engine.tracee.instep import Steps, alone
from migrate.engine.tracee.memory import Memory
from migrate.engine.tracee.pad import Pad
from migrate.engine.tracee.registers import Registers
from migrate.engine.tracee.rseq import Registrations
from migrate.engine.tracee.together import Seen, pending_signals, registers, seize, stops
from migrate.engine.tracee.waiting import attentive, wait_until
from migrate.errors import Failed, Problem, Refused

_GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_LAST_WORDS = 0.2  # seconds that the threads of a killed process get to become zombies


@dataclass
class ThreadState(Seen):
    """What ptrace knows of one stopped thread. ``pending``: siginfo_t of the signals sent to this thread alone;
    ``rseq_abort``: where a restartable sequence in progress must continue, or 0."""

    pending: list[bytes]
    rseq_abort: int


class StopTimeout(Failed):
    """A thread did not stop; all others were let go. The kernel keeps us as tracer of that one and will stop it once
    it can. End this process: there is no other way to let go of a thread that is not stopped (ptrace(2))."""


class Tracee:
    """One process and all its threads.

        with Tracee(pid) as tracee:
            tracee.stop()
            …
            tracee.resume()

    Between `stop` and `resume` it does not run; before and after it is not traced, so that its signals need no help
    of ours and a debugger finds nothing in its way. Leaving the context resumes it. When we are killed, it runs on.
    Use it from one thread only.
    """

    def __init__(self, pid: int) -> None:
        """Open nothing yet that the process could notice. OSError as of pidfd_open(2)."""
        self.pid = pid
        self.pidfd = ptrace.pidfd_open(pid)
        self.memory = Memory(pid)
        self.stopped_by = 0  # the signal of the group-stop that it is in (SIGSTOP, …), or 0
        self._stopped: dict[int, None] = {}  # in order of creation
        self._waiting: dict[int, None] = {}  # seized, not yet seen to stop
        self._dispositions: Dispositions | None = None
        self.registrations = Registrations(self.memory)
        places = lambda: [each.rip for each in self.all_registers().values()]  # noqa: E731
        self.pad = Pad(pid, self.memory, self.registrations, places)

    @property
    def tids(self) -> tuple[int, ...]:
        """The stopped threads, the first one first."""
        return tuple(self._stopped)

    @property
    def dispositions(self) -> Dispositions:
        """What it does with signals; looked up once each time that it is stopped."""
        if self._dispositions is None:
            self._dispositions = Dispositions.read(self.pid)
        return self._dispositions

    @cached_property
    def compat(self) -> bool:
        """Whether its program is one of 32 bits."""
        return is_ia32(self.pid)

    # Stopping

    def stop(self, timeout: float = 3.0) -> None:
        """Stop every thread. Signals that arrive meanwhile are delivered as ever; no instruction of theirs is run yet.

        Raises Refused when it may not be traced, ProcessEnded, and StopTimeout when a thread sleeps without being
        interruptible (state D: vfork, a dead network file system) for ``timeout`` seconds. Nothing is stopped then.
        """
        deadline = time.monotonic() + timeout
        try:
            with attentive():
                while True:
                    tids = self._listed()
                    new = [tid for tid in tids if tid not in self._stopped and tid not in self._waiting]
                    if not new and not self._waiting and len(tids) == len(self._stopped):
                        break
                    self._seize(new)
                    self._await_all(deadline, timeout)
                    for tid in self._stopped.keys() - set(tids):
                        del self._stopped[tid]  # killed since
                    if time.monotonic() > deadline:
                        raise StopTimeout(f"process {self.pid} makes threads faster than they can be stopped")
        except BaseException:
            self.resume()
            raise
        self._stopped = dict.fromkeys(tids)

    def summon(self) -> None:
        """Have every thread stop soon, and wait for none: where several processes are to be stopped, they come to rest
        at once. `stop` or `resume` is to follow, and says what stands in the way."""
        with suppress(Failed, Refused, OSError):
            self._seize([tid for tid in self._listed() if tid not in self._stopped and tid not in self._waiting])

    def _listed(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessEnded(f"process {self.pid} has ended") from None

    def _seize(self, tids: Sequence[int]) -> None:
        for tid, (seized, interrupted) in seize(tids).items():
            if seized == -errno.ESRCH:
                continue  # ended since it was listed
            if seized == -errno.EPERM:
                self._why_not(tid)
                continue
            if seized < 0:
                raise OSError(-seized, f"PTRACE_SEIZE of {tid}: {os.strerror(-seized)}")
            self._waiting[tid] = None
            if interrupted < 0 and interrupted not in (-errno.EIO, -errno.ESRCH):  # on its way out: it reports its end
                raise OSError(-interrupted, f"PTRACE_INTERRUPT of {tid}: {os.strerror(-interrupted)}")

    def _why_not(self, tid: int) -> None:
        """A thread that may not be seized: it is ending, or else the process is refused."""
        try:
            state = Path(f"/proc/{self.pid}/task/{tid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state not in "ZX":
            tracer = _tracer(tid)
            what = f"it is traced already, by process {tracer}" if tracer else "we have no right to trace it"
            raise Refused([Problem(f"thread {tid} of process {self.pid}", what)])
        if tid == self.pid:
            raise Refused([Problem(f"process {tid}", "its first thread has ended, or the whole process has")])

    def _await_all(self, deadline: float, timeout: float) -> None:
        # When the last one has stopped, mostly all have.
        for tid in reversed(list(self._waiting)):
            if tid in self._waiting:
                self._await(tid, deadline, timeout)
                with ExitStack() as each:  # a stop is reported once: all are seen to, whatever becomes of one
                    for other, stop in stops(list(self._waiting)).items():
                        each.callback(self._await, other, deadline, timeout, stop)

    def _await(self, tid: int, deadline: float, timeout: float, stop: ptrace.Stop | None = None) -> None:
        """``stop``: what it has reported already."""
        while True:
            try:
                stop = stop or wait_until(tid, deadline)
            except ChildProcessError:
                stop = ptrace.Stop(0)  # execve(2) in another thread took it away without a word
            if stop is None:
                raise StopTimeout(
                    f"thread {tid} of process {self.pid} did not stop within {timeout:g} s: {_sleeping_in(tid)}"
                )
            if stop.stopped and not stop.event:
                # A signal was faster than our interrupt, and has made the kernel forget it ("Any trap clears pending
                # STOP trap", ptrace_stop() in kernel/signal.c). Asked again, it comes before any code of the handler.
                ptrace.interrupt(tid)
                ptrace.cont(tid, stop.signal)
                stop = None
                continue
            del self._waiting[tid]
            if stop.stopped:
                self._stopped[tid] = None
                self.note_stop(stop)
            return

    def note_stop(self, stop: ptrace.Stop) -> None:
        """A thread has come to an event stop: perhaps one of the whole process."""
        if stop.signal in _GROUP_STOPS:
            self.stopped_by = stop.signal

    # Letting go

    def resume(self) -> None:
        """Let it run on, or be stopped on if it was stopped by a signal; detach from every thread. Signals that came
        meanwhile are delivered now. Never fails; a process that was killed meanwhile is let go of too."""
        gone = []
        for tid in reversed(self._stopped):
            try:
                ptrace.detach(tid)
            except OSError:
                gone.append(tid)  # killed: the kernel wants its end to be looked at
        deadline = time.monotonic() + _LAST_WORDS
        with attentive():
            for tid in gone:
                try:
                    stop = wait_until(tid, deadline)
                    if stop is not None and stop.stopped:
                        ptrace.detach(tid, 0 if stop.event else stop.signal)
                except OSError:
                    continue  # reaped by its end as a thread
            for tid in list(self._waiting):
                self._let_go(tid)
        self._stopped.clear()
        self._dispositions = None
        self.stopped_by = 0

    detach = resume

    def _let_go(self, tid: int) -> None:
        """A thread that had been interrupted and not been seen to stop."""
        try:
            stop = wait_until(tid, time.monotonic() + _LAST_WORDS)
            if stop is None:
                return  # stays in _waiting: see StopTimeout
            if stop.stopped:
                ptrace.detach(tid, 0 if stop.event else stop.signal)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ECHILD):
                raise
        del self._waiting[tid]

    def close(self) -> None:
        """Resume it and close all descriptors."""
        self.resume()
        self.memory.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Looking, while it is stopped

    def registers(self, tid: int) -> Registers:
        """The general registers; inside an interrupted system call rax is -ERESTART… and orig_rax its number."""
        return Registers.unpack(ptrace.get_registers(tid))

    def all_registers(self) -> dict[int, Registers]:
        """Those of every thread. OSError: ESRCH when one was killed."""
        return registers(self.tids)

    def set_registers(self, tid: int, registers: Registers) -> None:
        """All of them."""
        ptrace.set_registers(tid, registers.pack())

    def look(self) -> list[Seen]:
        """What ptrace tells of every thread at a glance. Raises ProcessEnded."""
        return look(self.tids, self.registrations)

    def threads(self, seen: Sequence[Seen] = ()) -> list[ThreadState]:
        """Everything that ptrace tells about every thread. ``seen``: by `look`, since when none has run. Raises
        ProcessEnded."""
        found = seen or self.look()
        try:
            sequences = interrupted_sequences(self.memory, [each.rseq for each in found])
            pending = pending_signals(self.tids)
        except ProcessLookupError as error:
            raise ProcessEnded(f"process {self.pid} was killed while it was being looked at") from error
        states = []
        for each, sequence in zip(found, sequences, strict=True):
            abort = sequence.abort_ip if sequence is not None and sequence.covers(each.registers.rip) else 0
            known = each.tid, each.registers, each.signal_mask, each.rseq, each.xstate
            states.append(ThreadState(*known, pending[each.tid], abort))
        return states

    def shared_pending(self) -> list[bytes]:
        """siginfo_t of the signals sent to the process as a whole, in order."""
        return ptrace.pending_signals(next(iter(self._stopped)), shared=True)

    def pending(self) -> dict[int, list[bytes]]:
        """siginfo_t of the signals sent to each thread, in order."""
        return pending_signals(list(self._stopped))

    def remote_syscall(self, tid: int, number: int, *args: int) -> int:
        """One system call made by a stopped thread; what it returned, -errno included. The thread is as before then,
        and gets home without us too. Raises ProcessEnded, ParasiteFailed, Refused (seccomp)."""
        return alone(self.calling(tid, number, *args))

    def calling(self, tid: int, number: int, *args: int) -> Steps[int]:
        """`remote_syscall`, in step with others."""
        return self.pad.call(tid, self.dispositions, number, *args)

    def on_the_way_home(self) -> bool:
        """Whether a thread is still in code put in by a tracer that was killed, and needs a moment to get out of it."""
        return self.pad.on_the_way_home()


def _tracer(tid: int) -> int:
    for line in Path(f"/proc/{tid}/status").read_text(errors="replace").splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def _sleeping_in(tid: int) -> str:
    """Why, as far as the kernel tells: the state letter, and the function it sleeps in."""
    try:
        state = Path(f"/proc/{tid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        function = Path(f"/proc/{tid}/wchan").read_text(errors="replace").strip("0\n")
    except OSError:
        return "it is ending"
    if state != "D":
        return f"it is in state {state}"
    return "it is in a sleep that nothing can interrupt (state D" + (f", in {function})" if function else ")")

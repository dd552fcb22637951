"""Threads on a detour: taken out of what they are doing, run through a stub, and put back as they were.

What holds at every instant, whoever is killed: a thread whose registers point to its stub gets home by itself; a thread
whose registers are its own has its own signal mask. Hence the order below: on the way out registers first and mask
second (the stub sets the same mask again), on the way back mask first and registers second.

Lost on the way: a restartable sequence that was interrupted is aborted (rseq(2)), as the kernel does at any preemption.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from migrate.engine.tracee import ptrace
from migrate.engine.tracee.memory import Memory, RemoteAddress
from migrate.engine.tracee.registers import EINTR, ERESTART_RESTARTBLOCK, NO_SYSCALL, USER_CS, Registers
from migrate.engine.tracee.rseq import Registrations
from migrate.engine.tracee.stub import Template, way_home
from migrate.engine.tracee.together import Seen, dress, places, set_options, stops, survey
from migrate.engine.tracee.waiting import attentive, wait_until
from migrate.errors import Failed, Problem, Refused

_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PLAIN_FLAGS = 0x202  # interrupts on, direction forward, no single-stepping
_TRAP_FLAG = 0x100
_RECALL = 2.0  # seconds that a thread gets to stop when it has to come back early


class ProcessEnded(Failed):
    """The process, or a thread of it, ended or was killed while it was being looked at."""


class ParasiteFailed(Failed):
    """Our code in the task crashed or did not finish in time. Everything was put back."""


def bit(number: int) -> int:
    """A signal as a member of a mask."""
    return 1 << (number - 1)


_FAULT_MASK = sum(bit(number) for number in _FAULTS)
_ALL = (1 << 64) - 1


@dataclass(frozen=True)
class Dispositions:
    """What the process does with signals, as masks; and whether it is under seccomp (its first thread)."""

    ignored: int
    caught: int

    @classmethod
    def read(cls, pid: int) -> Dispositions:
        """From /proc/PID/status."""
        try:
            text = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessEnded(f"process {pid} has ended") from None
        found = dict(re.findall(r"^(SigIgn|SigCgt):\s*([0-9a-f]+)$", text, re.MULTILINE))
        return cls(int(found["SigIgn"], 16), int(found["SigCgt"], 16))

    def marker(self, mask: int) -> int:
        """A signal that a thread with this mask does not feel, or 0 when there is none.

        It is neither blocked (then it would stay, for signalfd or sigwait) nor caught, and ignored: by its default, or
        because the task says so. Not SIGCONT: to send it has effects of its own.
        """
        for number in (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD):
            if not (self.caught | mask) & bit(number):
                return number
        candidates = self.ignored & ~mask & ~_FAULT_MASK & ~bit(signal.SIGCONT) & ~sum(map(bit, _STOPS))
        return candidates.bit_length()


@dataclass(frozen=True)
class Traveller:
    """A stopped thread and all that is needed to put it back."""

    tid: int
    registers: Registers  # what it goes back to
    mask: int
    marker: int  # 0: watch its system calls instead

    @property
    def blocked(self) -> int:
        """The mask on the way: all but the marker; nor the signals of a fault, because the kernel would take away the
        task's handler when it forces a blocked one (force_sig_info_to_task in kernel/signal.c)."""
        return _ALL & ~_FAULT_MASK & ~(bit(self.marker) if self.marker else 0)

    def literals(self) -> dict[str, int]:
        """What its stub needs to know of it."""
        home = self.registers.replace(eflags=self.registers.eflags & ~_TRAP_FLAG)
        return way_home(home, self.mask, self.blocked, self.marker)


def travellers(seen: Sequence[Seen], memory: Memory, dispositions: Dispositions) -> list[Traveller]:
    """Stopped threads that were just looked at. Raises ProcessEnded."""
    try:
        aborts = interrupted_sequences(memory, [each.rseq for each in seen])
    except OSError as error:
        raise _ended(error) from error
    people = []
    for each, abort in zip(seen, aborts, strict=True):
        registers, mask = each.registers, each.signal_mask
        if abort is not None and abort.covers(registers.rip):
            registers = registers.replace(rip=abort.abort_ip)
        people.append(Traveller(each.tid, registers, mask, dispositions.marker(mask)))
    return people


def look(tids: Sequence[int], registrations: Registrations) -> list[Seen]:
    """At stopped threads. Raises ProcessEnded."""
    try:
        return survey(tids, registrations)
    except OSError as error:
        raise _ended(error) from error


@dataclass(frozen=True)
class RestartableSequence:
    """struct rseq_cs (linux/rseq.h)."""

    start_ip: int
    length: int
    abort_ip: int

    def covers(self, rip: int) -> bool:
        """Whether a thread at ``rip`` is in the middle of it."""
        return 0 <= rip - self.start_ip < self.length


def interrupted_sequences(
    memory: Memory, configurations: Sequence[ptrace.RseqConfiguration | None]
) -> list[RestartableSequence | None]:
    """For each thread the restartable sequence that it has announced, which it may be in."""
    words = memory.read_many([(RemoteAddress(c.address + 8), 8) for c in configurations if c is not None])
    pointers = iter(words)
    found: list[RestartableSequence | None] = []
    for configuration in configurations:
        sequence = None
        pointer = int.from_bytes(next(pointers), "little") if configuration is not None else 0
        if pointer:
            _, start, length, abort = struct.unpack("<Q3Q", memory.read(RemoteAddress(pointer), 32))
            sequence = RestartableSequence(start, length, abort)
        found.append(sequence)
    return found


@dataclass(frozen=True)
class Trip:
    """A traveller and the stub that waits for it in the task."""

    traveller: Traveller
    entry: RemoteAddress
    template: Template

    @cached_property
    def start(self) -> bytes:
        """The registers to set out with."""
        registers = self.traveller.registers.replace(rip=self.entry, orig_rax=NO_SYSCALL, eflags=_PLAIN_FLAGS)
        return (registers.replace(cs=USER_CS) if registers.compat else registers).pack()

    @cached_property
    def home(self) -> bytes:
        """The registers to come back to."""
        return self.traveller.registers.pack()

    @cached_property
    def marked(self) -> int:
        """The instruction pointer at which the work is done."""
        return self.entry + self.template.marked

    def at_marker(self, stop: ptrace.Stop) -> bool:
        """Whether it is the marker signal that has come; somebody else may have sent it."""
        return stop.stopped and not stop.event and 0 < stop.signal == self.traveller.marker


def travel(trips: Sequence[Trip], timeout: float, meanwhile: Callable[[], None] | None = None) -> dict[int, int]:
    """Run every stub, all at once; what each left in r12. All threads are stopped and as before when this returns or
    raises, but for those that the kernel killed. ``meanwhile``: what to do ourselves while they run."""
    return _Journey(trips).run(timeout, meanwhile)


class _Journey:
    def __init__(self, trips: Sequence[Trip]) -> None:
        self.trips = {trip.traveller.tid: trip for trip in trips}
        self.away: dict[int, Trip] = {}
        self.results: dict[int, int] = {}
        self.suspended: list[int] = []

    def run(self, timeout: float, meanwhile: Callable[[], None] | None) -> dict[int, int]:
        with attentive():
            try:
                self._suspend_seccomp()
                self._leave()
                try:
                    if meanwhile is not None:
                        meanwhile()
                finally:
                    self._arrive(time.monotonic() + timeout)
            except OSError as error:
                raise _ended(error) from error
            finally:
                self._recall()
        return self.results

    def _suspend_seccomp(self) -> None:
        """A filter would see our calls and might kill for them. Lifted from stopped threads only, so that no code of
        the task ever runs without it ("seccomp: add a ptrace hook to suspend", PTRACE_O_SUSPEND_SECCOMP, Linux 4.3)."""
        results = set_options(list(self.trips), ptrace.O_TRACESYSGOOD | ptrace.O_SUSPEND_SECCOMP)
        self.suspended = [tid for tid, result in results.items() if result >= 0]
        for tid, result in results.items():
            if result >= 0:
                continue
            if -result not in (errno.EPERM, errno.EINVAL):
                raise OSError(-result, f"PTRACE_SETOPTIONS of {tid}: {os.strerror(-result)}")
            if seccomp_mode(tid):
                raise Refused([_under_seccomp(tid)])

    def _leave(self) -> None:
        starts = []
        for tid, trip in self.trips.items():
            starts.append((tid, trip.start, trip.traveller.blocked))
        self.away = dict(self.trips)
        # A marker that cannot be a signal is found by looking at every system call: slow, but always possible.
        resume = [ptrace.CONT if trip.traveller.marker else ptrace.SYSCALL for trip in self.trips.values()]
        dress(starts, mask_first=False, resume=resume)

    def _wait(self, tid: int, deadline: float) -> ptrace.Stop:
        stop = wait_until(tid, deadline)
        if stop is None:
            raise ParasiteFailed(f"the code put into thread {tid} did not finish in time")
        return stop

    def _arrive(self, deadline: float) -> None:
        self._arrive_together(deadline)
        for tid, trip in self.trips.items():
            while tid in self.away:
                self._handle(tid, trip, self._wait(tid, deadline))

    def _arrive_together(self, deadline: float) -> None:
        """What mostly happens: each comes to its marker, and is put back together with all others. Whoever stops for
        another reason is seen to afterwards, also when a third one does not come: a stop is reported only once."""
        stopped: dict[int, ptrace.Stop] = {}
        try:
            # When the last one has come, mostly all have.
            for tid in reversed(self.trips):
                if tid not in stopped:
                    stopped[tid] = self._wait(tid, deadline)
                    stopped |= stops([tid for tid in self.trips if tid not in stopped])
        finally:
            there = places([tid for tid, stop in stopped.items() if self.trips[tid].at_marker(stop)])
            home = []
            for tid, (result, rip) in there.items():
                trip = self.trips[tid]
                if rip == trip.marked:
                    self.results[tid] = result
                    home.append((tid, trip.home, trip.traveller.mask))
                    del self.away[tid], stopped[tid]
            dress(home, mask_first=True)
            with ExitStack() as each:
                for tid, stop in stopped.items():
                    each.callback(self._handle, tid, self.trips[tid], stop)

    def _go_on(self, trip: Trip, number: int = 0) -> None:
        resume = ptrace.cont if trip.traveller.marker else ptrace.cont_to_syscall
        resume(trip.traveller.tid, number)

    def _handle(self, tid: int, trip: Trip, stop: ptrace.Stop) -> None:
        traveller = trip.traveller
        if not stop.stopped:
            del self.away[tid]
            raise ProcessEnded(f"thread {tid} was killed while our code ran in it")
        number = stop.signal
        if stop.event:
            # An interrupt that came late, a group-stop that began, or a SIGCONT that ended one: goes on all the same.
            self._go_on(trip)
        elif number == signal.SIGTRAP | ptrace.SYSCALL_STOP:
            registers = Registers.unpack(ptrace.get_registers(tid))
            if registers.rip == trip.marked:
                self._skip_call(tid, registers)
                self._put_back(tid, trip)
            else:
                self._go_on(trip)
        elif number == traveller.marker:
            registers = Registers.unpack(ptrace.get_registers(tid))
            if registers.rip == trip.marked:
                self.results[tid] = registers.r12
                self._put_back(tid, trip)
            else:
                self._go_on(trip)  # somebody else sent one: the task would not have felt it
        elif number in _FAULTS and ptrace.get_signal_code(tid) > 0:
            registers = Registers.unpack(ptrace.get_registers(tid))
            where = registers.rip - trip.entry
            self._put_back(tid, trip)
            raise ParasiteFailed(
                f"the code put into thread {tid} crashed by {signal.Signals(number).name} "
                f"at {registers.rip:#x} (its entry{where:+#x})"
            )
        elif number in _STOPS:
            self._go_on(trip, number)  # becomes a group-stop, to which the thread goes back when it is let go
        else:
            # A signal of the task's own. Blocked now, it goes back to its queue (ptrace_signal in kernel/signal.c).
            ptrace.set_signal_mask(tid, traveller.blocked | bit(number))
            self._go_on(trip, number)

    def _skip_call(self, tid: int, registers: Registers) -> None:
        """From the entry of the marking call to a stop from which the kernel will restart calls."""
        self.results[tid] = registers.r12
        ptrace.interrupt(tid)
        ptrace.set_registers(tid, registers.replace(orig_rax=NO_SYSCALL).pack())
        ptrace.cont(tid)
        self._stopped_again(tid)

    def _put_back(self, tid: int, trip: Trip, registers: Registers | None = None) -> None:
        del self.away[tid]
        ptrace.set_signal_mask(tid, trip.traveller.mask)
        ptrace.set_registers(tid, (registers or trip.traveller.registers).pack())

    def _stopped_again(self, tid: int) -> None:
        deadline = time.monotonic() + _RECALL
        while True:
            stop = wait_until(tid, deadline)
            if stop is None:
                raise ParasiteFailed(f"thread {tid} does not stop any more")
            if not stop.stopped:
                self.away.pop(tid, None)
                raise ProcessEnded(f"thread {tid} was killed while our code ran in it")
            if stop.event:
                return
            ptrace.interrupt(tid)  # any other stop makes the kernel forget the one before (ptrace_stop())
            number = stop.signal
            if number in _STOPS:
                ptrace.cont(tid, number)
            elif number == signal.SIGTRAP | ptrace.SYSCALL_STOP or number == self.trips[tid].traveller.marker:
                ptrace.cont(tid)
            elif number in _FAULTS and ptrace.get_signal_code(tid) > 0:
                return
            else:
                ptrace.set_signal_mask(tid, self.trips[tid].traveller.blocked | bit(number))
                ptrace.cont(tid, number)

    def _recall(self) -> None:
        """Bring back whoever is still away, and put the filters back."""
        problems: list[str] = []
        for tid, trip in list(self.away.items()):
            try:
                ptrace.interrupt(tid)
                self._stopped_again(tid)
                self._put_back(tid, trip, self._interrupted(tid, trip))
            except (OSError, Failed) as error:
                problems.append(str(error))
        for tid, result in set_options(self.suspended, ptrace.O_TRACESYSGOOD).items():
            if result < 0 and result != -errno.ESRCH:  # killed
                problems.append(f"PTRACE_SETOPTIONS of {tid}: {os.strerror(-result)}")
        if problems and self.away:
            raise ProcessEnded("; ".join(problems))

    @staticmethod
    def _interrupted(tid: int, trip: Trip) -> Registers:
        """The registers to go back to from the middle of a program: a sleep of its own has taken the place of the
        task's restart block, and the task's must end with EINTR then."""
        there = Registers.unpack(ptrace.get_registers(tid))
        home = trip.traveller.registers
        if ERESTART_RESTARTBLOCK == there.interrupted_with == home.interrupted_with:
            return home.replace(rax=-EINTR)
        return home


def seccomp_mode(tid: int) -> int:
    """0: none, 1: strict, 2: filters (proc_pid_status(5))."""
    text = Path(f"/proc/{tid}/status").read_text(errors="replace")
    found = re.search(r"^Seccomp:\s*(\d)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _under_seccomp(tid: int) -> Problem:
    return Problem(
        f"thread {tid}",
        "it is under seccomp, and its filter may kill it for the system calls that are made in it",
        "run as root (CAP_SYS_ADMIN), and not under seccomp, so that the filter can be suspended meanwhile",
    )


def _ended(error: OSError) -> Failed:
    """A tracee that is killed answers ESRCH to everything, and has no memory any more."""
    if error.errno in (errno.ESRCH, errno.ECHILD):
        return ProcessEnded(f"the process was killed while it was being looked at ({error})")
    return Failed(f"the process cannot be looked at: {error}")



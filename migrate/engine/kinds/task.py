"""A process and its threads, but for memory, descriptors and registers: the kinds of this package put together.

What only the task can tell is asked by two programs that it runs itself while it is stopped: one for the process (the
main thread runs it), one for each thread. Neither depends on the task, timers aside, so they are linked once. The rest
comes from the tracer and from a few files of /proc that are held open; while the task is frozen, nothing is opened.

Restoring takes steps, each for all before the next is begun for any:

1. `restore_process_early`: the main thread, before the descriptors.
2. `restore_process_signals`: the main thread, when all threads exist: a timer may name any of them.
3. `restore_thread`: each thread itself; after it the thread is no longer root.
4. `restore_process_late`: the main thread, when all threads are done.
5. `confine`: what is to be done from outside, when all of it is (see `migrate.engine.kinds.seccomp`).

All signals are blocked all the time; masks are set by the tracer, and so is being stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from migrate.engine.kernel.accounting import PosixTimer as ListedTimer
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kernel.stat import stat
from migrate.engine.kinds import seccomp
from migrate.engine.kinds.controls import ProcessControls, ThreadControls
from migrate.engine.kinds.credentials import Credentials
from migrate.engine.kinds.identity import Identity, Rseq
from migrate.engine.kinds.limits import Limits
from migrate.engine.kinds.scheduling import Scheduling, cpu_mask
from migrate.engine.kinds.seccomp import Seccomp, mode_of
from migrate.engine.kinds.signals import AlternateStack, SignalActions, SignalQueue
from migrate.engine.kinds.timers import IntervalTimers, PosixTimers
from migrate.engine.program import Program, Results
from migrate.engine.remote_calls import Confinement, RemoteCall
from migrate.errors import Problem

PROCESS_FILES = ("stat", "status", "limits", "oom_score_adj", "coredump_filter", "timers")  # to be held open
OPTIONAL_FILES = ("autogroup",)  # the same, where the kernel has them
THREAD_FILES = ("status",)
CAP_SYS_RESOURCE = 24
SIGHUP, SIGCONT, SIGWINCH = 1, 18, 28


@dataclass(frozen=True)
class Host:
    """What must be known of the source to tell a choice from a default."""

    cpus: int  # mask of those online: `cpu_mask` of /sys/devices/system/cpu/online
    slice: int  # `default_slice`


@dataclass(frozen=True)
class Destination:
    """What must be known of the destination; what is of a process is that of the agent there."""

    limits: Limits
    bounding: int
    effective: int
    securebits: int
    oom_score_adj: int
    cpus: int
    nodes: int
    timers_by_id: bool
    seccomp: int | None  # mode of the agent; None: that kernel has no seccomp

    @classmethod
    def from_texts(
        cls, limits: str, status: bytes, oom_score_adj: str, cpus: str, nodes: str, timers_by_id: bool
    ) -> Destination:
        """From /proc/self/limits, status and oom_score_adj of the agent, and ``online`` in /sys/devices/system/cpu and
        /sys/devices/system/node (empty without NUMA)."""
        own = Credentials.from_status(status, 0)
        return cls(
            Limits.from_text(limits),
            own.bounding,
            own.effective,
            own.securebits,
            int(oom_score_adj),
            cpu_mask(cpus),
            cpu_mask(nodes) or 1,
            timers_by_id,
            mode_of(status) if b"\nSeccomp:\t" in status else None,
        )

    @property
    def can_raise(self) -> bool:
        """Whether limits can be raised, and oom_score_adj lowered."""
        return bool(self.effective >> CAP_SYS_RESOURCE & 1)


@dataclass(frozen=True)
class Process:
    """What belongs to all threads. ``pgrp`` and ``session`` are as the reader of /proc numbers them."""

    pid: int
    pgrp: int
    session: int
    stopped: bool  # by a SIGSTOP or the like; to be let go as stopped
    actions: SignalActions
    queue: SignalQueue
    interval_timers: IntervalTimers
    posix_timers: PosixTimers
    limits: Limits
    controls: ProcessControls
    compat: bool = False  # of 32 bits (ia32)

    def problems(self, where: str, destination: Destination, tids: Collection[int]) -> list[Problem]:
        """What the destination cannot give. ``tids``: of all threads, as the task knows them."""
        return [
            *self.queue.problems(where),
            *self.posix_timers.problems(where, tids, destination.timers_by_id),
            *self.limits.problems(where, destination.limits, destination.can_raise),
            *self.controls.problems(where, destination.oom_score_adj, destination.can_raise),
        ]


@dataclass(frozen=True)
class Thread:
    """What belongs to one thread."""

    identity: Identity
    mask: int
    queue: SignalQueue
    stack: AlternateStack
    rseq: Rseq | None
    credentials: Credentials
    scheduling: Scheduling
    controls: ThreadControls
    seccomp: Seccomp

    def problems(self, where: str, destination: Destination) -> list[Problem]:
        """What the destination cannot give."""
        return [
            *self.seccomp.problems(where, destination.effective, destination.seccomp),
            *self.queue.problems(where),
            *self.credentials.problems(where, destination.bounding, destination.securebits),
            *self.scheduling.problems(where, destination.nodes),
        ]

    @property
    def held(self) -> int:
        """Capabilities that it has beyond its own until `confine`."""
        return self.seccomp.held(self.credentials.no_new_privs, self.credentials.effective)

    def warnings(self, where: str, destination: Destination) -> list[str]:
        """What will be different there."""
        return [
            *self.credentials.warnings(where, destination.bounding),
            *self.scheduling.warnings(where, destination.cpus),
        ]


@dataclass(frozen=True)
class ProcessOutside:
    """What is known of a process without asking it."""

    pid: int  # as it knows itself
    files: Mapping[str, bytes]  # contents of PROCESS_FILES and OPTIONAL_FILES
    queue: Sequence[bytes]  # PTRACE_PEEKSIGINFO with PTRACE_PEEKSIGINFO_SHARED
    stopped: bool  # in a group-stop when the tracer came
    compat: bool = False  # it runs a program of 32 bits


@dataclass(frozen=True)
class ThreadOutside:
    """What is known of a thread without asking it."""

    status: bytes  # content of its file
    mask: int  # PTRACE_GETSIGMASK
    queue: Sequence[bytes]  # PTRACE_PEEKSIGINFO
    rseq: Rseq | None  # PTRACE_GET_RSEQ_CONFIGURATION
    filters: Sequence[tuple[int, bytes]] = ()  # flags and code of seccomp filters, the oldest first


def collect_process(
    program: Program, timers: Sequence[ListedTimer] = (), tids: Mapping[int, int] | None = None
) -> Callable[[Results, ProcessOutside], Process]:
    """About 70 ops, 2 more for each of the ``timers`` (of the file of that name). ``tids``: our numbers of threads ->
    the task's own, where those differ."""
    actions = SignalActions.collect(program)
    interval = IntervalTimers.collect(program)
    posix = PosixTimers.collect(program, timers, tids)
    controls = ProcessControls.collect(program)

    def decode(results: Results, outside: ProcessOutside) -> Process:
        files = outside.files
        numbers = stat(files["stat"].decode("utf-8", "surrogateescape"))
        queue = SignalQueue.from_outside(outside.queue, _status_mask(files["status"], b"\nShdPnd:\t"))
        return Process(
            pid=outside.pid,
            pgrp=numbers.pgrp,
            session=numbers.session,
            stopped=outside.stopped or queue.stops,
            actions=actions(results),
            queue=queue,
            interval_timers=interval(results),
            posix_timers=posix(results),
            limits=Limits.from_text(files["limits"].decode()),
            controls=controls(results, numbers.flags, files),
            compat=outside.compat,
        )

    return decode


def collect_thread(program: Program, host: Host, compat: bool = False) -> Callable[[Results, ThreadOutside], Thread]:
    """20 ops, the same for every thread."""
    identity = Identity.collect(program, compat)
    stack = AlternateStack.collect(program)
    credentials = Credentials.collect(program)
    scheduling = Scheduling.collect(program)
    controls = ThreadControls.collect(program)

    def decode(results: Results, outside: ThreadOutside) -> Thread:
        return Thread(
            identity(results),
            outside.mask,
            SignalQueue.from_outside(outside.queue, _status_mask(outside.status, b"\nSigPnd:\t")),
            stack(results),
            outside.rseq,
            credentials(results, outside.status),
            scheduling(results, host.cpus, host.slice),
            controls(results),
            Seccomp.from_outside(outside.status, outside.filters),
        )

    return decode


def restore_process_early(
    program: Program, process: Process, destination: Destination, member: bool = False, actions: bool = True
) -> None:
    """As root, before the descriptors, which may need the limits, and while /proc is where it was. ``member``: it is
    one of several, which are in their sessions and groups already; ``actions``: those for signals are its own."""
    if member:
        pass
    elif process.session == process.pid:
        program.syscall("setsid", label="session", expect=process.pid)
    else:
        # Its group or session leader stays behind. Its own group keeps it apart from the overseer's.
        program.syscall("setpgid", 0, 0, label="process group")
    process.limits.restore_raised(program, destination.limits)
    process.controls.restore_early(program, destination.oom_score_adj)
    if actions:
        process.actions.restore(program, process.compat)


def restore_process_signals(program: Program, process: Process, destination: Destination) -> None:
    """When all threads exist, and the actions are set: before that a signal that waits could be flushed."""
    process.queue.restore(program)
    process.posix_timers.restore(program, destination.timers_by_id)
    process.interval_timers.restore(program)


def restore_inherited(program: Program, main: Thread, process: Process, destination: Destination) -> None:
    """By the main thread before it makes the others: what a thread inherits from the one that makes it, and what most
    have in common."""
    main.scheduling.restore(program, destination.cpus)
    main.controls.restore(program, process.controls.io_flusher)


def restore_thread(
    program: Program, thread: Thread, process: Process, destination: Destination, maker: Thread | None = None
) -> None:
    """By the thread itself, as root, with its memory in place; it is no longer root afterwards. ``maker``: the thread
    that made it, after `restore_inherited`; itself for the main thread."""
    thread.identity.restore(program, process.compat)
    thread.stack.restore(program)
    if thread.rseq is not None:
        thread.rseq.restore(program)
    if maker is None or not (maker is thread or thread.scheduling.inherited_from(maker.scheduling)):
        thread.scheduling.restore(program, destination.cpus)
    if maker is None or not (maker is thread or thread.controls.inherited_from(maker.controls)):
        thread.controls.restore(program, process.controls.io_flusher)
    thread.queue.restore(program, thread.identity.tid)
    thread.credentials.restore(program, destination.bounding, thread.held)
    thread.controls.restore_late(program)


def forget_terminal(program: Program) -> None:
    """Before the queue is restored: signals that have come of the making of its controlling terminal, of its size, or
    of the end of a leader that had it. All are blocked, so they wait."""
    signals = program.data((1 << SIGHUP - 1 | 1 << SIGCONT - 1 | 1 << SIGWINCH - 1).to_bytes(8, "little"))
    at_once = program.data(bytes(16))
    for _ in range(3):
        program.syscall("rt_sigtimedwait", signals, 0, at_once, 8, label="signals of a terminal", ignore=True)


def restore_process_late(program: Program, process: Process, destination: Destination) -> None:
    """When no thread has anything left to do that a limit or a privilege decides."""
    process.limits.restore(program, destination.limits)
    process.controls.restore_late(program)


def confine(threads: Sequence[Thread], base: int) -> Confinement | None:
    """What is left when all threads of a process are as they were: their seccomp, and the capability that this takes.
    None: nothing. ``base``: an address at which there is room in the process."""
    installs = seccomp.plan([(each.seccomp, each.credentials.no_new_privs) for each in threads])
    if not installs:
        return None
    content, places = seccomp.layout(installs, base)
    calls = [RemoteCall(each.thread, "seccomp", each.call(places), each.label) for each in installs]
    for at, thread in enumerate(threads):
        if thread.held:
            more, args = thread.credentials.capset(base + len(content))
            content += more
            calls.append(RemoteCall(at, "capset", args, "capabilities"))
    return Confinement(base, content, tuple(calls))


def lasting(status: bytes) -> bytes:
    """What a thread's status says of it for longer than a moment: without its state and tracer in front, what it has
    in memory in the middle, and the switches at the end."""
    owner, memory = status.find(b"\nUid:"), status.find(b"\nVmPeak:")
    signals, end = status.find(b"\nSigPnd:"), status.find(b"\nvoluntary_ctxt_switches:")
    if not 0 <= owner <= memory <= signals <= end:
        return status
    return status[owner:memory] + status[signals:end]


def _status_mask(status: bytes, name: bytes) -> int:
    """A set of signals in status. Cut out by hand: parsing all of it for each thread takes 20 times as long."""
    at = status.find(name)
    if at < 0:
        raise ProcFormatError("status", f"no line {name.strip().decode()}")
    start = at + len(name)
    return int(status[start : start + 16], 16)


"""The programs that the overseer runs: make the restoree, hold it, dress it in its registers, let it go.

The overseer is the restoree's parent and its tracer, and no more than an interpreter: ptrace(2) and wait4(2) are
system calls like any other. PTRACE_O_EXITKILL ties the restoree's life to the overseer's until the commit.

Registers are set from outside (PTRACE_SETREGSET), not by an rt_sigreturn inside. So a system call that the dump
interrupted is described as the kernel left it (orig_rax, and -ERESTARTSYS and its kin in rax), and the destination's
kernel restarts it, or not, by its own rules when the stop ends (arch_do_signal_or_restart(), arch/x86/kernel/signal.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from migrate.engine.program import Buffer, Linked, OpKind, Program
from migrate.engine.remote_calls import (
    NT_PRSTATUS,
    PTRACE_SETREGSET,
    REGISTERS,
    WALL,
    Caller,
    Confinement,
    iovec_of,
    wait_for,
)

# ptrace(2), sys/ptrace.h
PTRACE_CONT, PTRACE_DETACH, PTRACE_SETOPTIONS, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 17, 0x4200, 0x4206, 0x4207
PTRACE_SET_THREAD_AREA, PTRACE_SETSIGMASK = 26, 0x420B
OPTIONS = 0x100001  # PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD
_SUSPEND = 1 << 21  # PTRACE_O_SUSPEND_SECCOMP
_FREE = 0x1  # without PTRACE_O_EXITKILL
NT_X86_XSTATE = 0x202
STOP_EVENT = 0x80057F  # wait status: PTRACE_EVENT_STOP << 16 | SIGTRAP << 8 | stopped
STOP_SIGSTOP = 0x137F  # wait status: SIGSTOP << 8 | stopped
SIGCHLD, SIGKILL, SIGPIPE, SIGSTOP, SIG_BLOCK = 17, 9, 13, 19, 0
PR_SET_PDEATHSIG = 1
PROT_RWX = 7
MAP_HOLE = 0x2 | 0x20 | 0x4000 | 0x100000  # PRIVATE, ANONYMOUS, NORESERVE, FIXED_NOREPLACE (Linux 4.17)

CODE_ROOM = 64 << 10
STACK_ROOM = 64 << 10
BUFFER_ROOM = 40 << 20  # page frames in flight, and one program (MAX_PROGRAM)
THREAD_STACK = 16 << 10
RLIMIT_NOFILE = 7  # getrlimit(2); every descriptor number of the restorer is below the soft limit

OVERSEER_CONTROL = 3  # where the agent leaves the overseer's control socket
JOURNAL = 4  # the migration's journal, open for appending; the control sockets of restorees follow
DATA_FD = 0  # and its own standard input, from which restorers read the contents of pages


@dataclass(frozen=True)
class Hole:
    """Where the restorer lives in the restoree: a range that no VMA of the task uses."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def stack_top(self) -> int:
        return self.start + CODE_ROOM + STACK_ROOM

    @property
    def buffer(self) -> int:
        return self.stack_top

    @property
    def threads(self) -> int:
        """How many threads besides the first it has stacks for."""
        return (self.end - self.buffer - BUFFER_ROOM) // THREAD_STACK

    def thread_stack(self, index: int) -> int:
        """Lowest address of the stack of the ``index``-th thread while it restores itself."""
        return self.buffer + BUFFER_ROOM + index * THREAD_STACK


def hole_size(threads: int) -> int:
    """Bytes of hole needed for so many threads besides the first."""
    size = CODE_ROOM + STACK_ROOM + BUFFER_ROOM + threads * THREAD_STACK
    return -(-size // (1 << 20)) << 20


def clone_args(program: Program, flags: int, stack: int, stack_size: int, tid: int, exit_signal: int = 0) -> Buffer:
    """struct clone_args (clone3(2)) that asks for the TID ``tid``; 0: any."""
    tids = program.data(struct.pack("<q", tid))
    fields = (flags, 0, 0, 0, exit_signal, stack, stack_size, 0, 0, int(tid > 0), 0)
    if not tid:
        return program.data(struct.pack("<11Q", *fields))
    return program.data(struct.pack("<11Q", *fields), pointers={64: tids})


@dataclass(frozen=True)
class Channels:
    """Descriptor numbers in the restorees that belong to the restorer until the end. ``streams``: of the standard
    streams that they are given, or none; ``given``: of the first of these in the overseer, behind the control sockets
    of all restorees."""

    control: int
    data: int
    streams: tuple[int, ...] = ()
    given: int = JOURNAL + 2

    @property
    def all(self) -> frozenset[int]:
        return frozenset((self.control, self.data, *self.streams))


@dataclass(frozen=True)
class Dress:
    """What a thread must be in when it is let go: user_regs_struct (216 bytes), XSAVE image, signal mask."""

    tid: int
    registers: bytes
    xsave: bytes
    mask: int


Segments = tuple[tuple[bytes, ...], ...]  # struct user_desc that each of the threads has


class Arming:
    """Seize the parked threads, have them confined, take the restorer's socket and mapping away, and set their
    registers. They stay stopped. What is not of the registers is compiled when it is made. ``tenant``: the mapping is
    another one's, who shares its memory and comes after it. ``segments``: of threads of 32 bits, else none."""

    def __init__(
        self,
        main: int,
        hole: Hole,
        control: int,
        tids: Sequence[int],
        xsave_size: int,
        tenant: bool = False,
        confinement: Confinement | None = None,
        segments: Segments = (),
    ) -> None:
        program = Program(f"the registers of pid {main}")
        status = program.space(8)
        caller = Caller(program, hole.start)
        for tid in tids:
            if tid != main:
                program.syscall("ptrace", PTRACE_SEIZE, tid, 0, OPTIONS, label=f"seize thread {tid}")
            program.syscall("ptrace", PTRACE_INTERRUPT, tid, 0, 0, label=f"stop thread {tid}")
        for tid in tids:
            wait_for(program, status, tid, STOP_EVENT, f"stop of thread {tid}")
        if confinement is not None:
            _confine(program, caller, main, tids, confinement)
        _leave_behind(caller, main, hole, control, tenant)
        for tid, its in zip(tids, segments, strict=False):
            for description in its:
                entry = int.from_bytes(description[:4], "little")
                content, label = program.data(description), f"segment {entry} of thread {tid}"
                program.syscall("ptrace", PTRACE_SET_THREAD_AREA, tid, entry, content, label=label)
        self._places = []
        for tid in tids:
            registers, xsave, mask = program.space(REGISTERS), program.space(xsave_size, align=64), program.space(8)
            self._places.append((registers, xsave, mask))
            for what, number, buffer in (
                ("registers", NT_PRSTATUS, registers),
                ("vector registers", NT_X86_XSTATE, xsave),
            ):
                iovec, label = iovec_of(program, buffer), f"{what} of thread {tid}"
                program.syscall("ptrace", PTRACE_SETREGSET, tid, number, iovec, label=label)
            program.syscall("ptrace", PTRACE_SETSIGMASK, tid, 8, mask, label=f"signal mask of thread {tid}")
        self._linked = program.link()

    def dressed(self, threads: Sequence[Dress]) -> Linked:
        """The program, with what these threads, in the order of ``tids``, must be in."""
        image = bytearray(self._linked.image)
        for thread, places in zip(threads, self._places, strict=True):
            values = thread.registers, thread.xsave, thread.mask.to_bytes(8, "little")
            for value, buffer in zip(values, places, strict=True):
                if len(value) != buffer.size:
                    raise ValueError(f"thread {thread.tid}: {len(value)} bytes where {buffer.size} belong")
                start = self._linked.data_at + buffer.offset
                image[start : start + buffer.size] = value
        return replace(self._linked, image=bytes(image))


def _confine(program: Program, caller: Caller, main: int, tids: Sequence[int], confinement: Confinement) -> None:
    """From now on nothing that they are under counts, until they are untied: `_untie` sets options without this."""
    for tid in tids:
        label = f"suspend the seccomp of thread {tid}"
        program.syscall("ptrace", PTRACE_SETOPTIONS, tid, 0, OPTIONS | _SUSPEND, label=label)
    size = len(confinement.content)
    here, there = iovec_of(program, program.data(confinement.content)), struct.pack("<QQ", confinement.base, size)
    label = f"seccomp filters of pid {main}"
    program.syscall("process_vm_writev", main, here, 1, program.data(there), 1, 0, label=label, expect=size)
    for call in confinement.calls:
        tid = tids[call.thread]
        caller.call(tid, call.name, call.args, f"{call.label} of thread {tid}")


def _leave_behind(caller: Caller, main: int, hole: Hole, control: int, tenant: bool) -> None:
    """What the restorer itself is of, by the main thread: its socket, which it may not have come to close since it
    answered, and its memory, the last thing it ever does."""
    caller.call(main, "close", (control,), f"close the restorer's socket in pid {main}", checked=False)
    if not tenant:
        caller.call(main, "munmap", (hole.start, hole.size), f"unmap the restorer from pid {main}")


Late = Callable[[Program], None]


@dataclass(frozen=True)
class Records:
    """What the overseer writes into the journal in the course of the commit, made by who knows what belongs there."""

    committed: bytes
    releasing: bytes
    released: bytes


def release(
    main: int, tids: Sequence[int], stopped: bool, stay: bool, records: Records, late: Late = lambda program: None
) -> tuple[Program, int]:
    """The commit: let every thread go, and leave, or stay until the restoree has ended (as init of a PID namespace,
    or as a parent whose end would be noticed). ``tids``: in the order in which they were seized, ``main`` first.
    ``late``: what is to be done when nothing can be called off any more; none of it may fail. Also returns how
    many ops there are up to the one that unties the last thread: when one of these fails, or the
    overseer dies before it is past them, nothing has run, and nothing will.

    Who commits is the overseer itself, so that the agent's death changes nothing. When a tracer dies the kernel goes
    through the tracees, the one seized last first, and each that has PTRACE_O_EXITKILL takes its whole process with it
    (exit_ptrace() in kernel/ptrace.c; __ptrace_link() puts the newest to the front of the list). All under one lock
    (tasklist_lock), but a thread that it lets go runs at once on another CPU. So the one that it comes to first is
    untied last: until then the process is killed before any of its threads is let go.
    """
    program = Program(f"the release of pid {main}")
    _begin_release(program)
    if stopped:
        program.syscall("kill", main, SIGSTOP, label=f"pid {main} was stopped")
    revocable = _untie(program, tids, records)
    late(program)
    for tid in tids:
        program.syscall("ptrace", PTRACE_DETACH, tid, 0, 0, label=f"let thread {tid} go", ignore=True)
    _leave(program, main if stay else 0)
    return program, revocable


@dataclass(frozen=True)
class Member:
    """A process of a tree that is to be let go. ``mask``: the signal mask of its main thread; ``stopped``: it is to be
    let go as stopped."""

    pid: int
    tids: tuple[int, ...]
    mask: int
    stopped: bool


def release_all(
    members: Sequence[Member], stay: bool, records: Records, late: Late = lambda program: None
) -> tuple[Program, int]:
    """The commit of a tree: `release` for several processes. ``members``: in the order in which they were seized.

    What holds a thread of one process back until the last is untied (see `release`) does not hold other processes: the
    kernel kills them one by one, and one that is untied already would run on alone. So before any is untied a SIGSTOP
    is put into the queue of each; in a tracer's stop nothing takes it out, but a thread that is let go does, before it
    runs an instruction (get_signal() in kernel/signal.c: the signal is taken and the group-stop begun under one
    siglock). So an overseer that dies

    - with some of them tied leaves some dead, and the others stopped: who finds that kills these. Nothing has run.
    - with all of them untied leaves all of them stopped, or some of them running: who finds that sends SIGCONT to those
      that stand still. All of it runs.

    Which of the two it was shows in whether all live (`agents.settling`). In the end the SIGSTOP is taken out again, as
    a tracer may, with no trace of it: the main thread is let run with all signals blocked, and gets no further than to
    its delivery.
    """
    program = Program(f"the release of pid {members[0].pid} and its descendants")
    _begin_release(program)
    for each in members:
        program.syscall("kill", each.pid, SIGSTOP, label=f"hold pid {each.pid}")
    revocable = _untie(program, [tid for each in members for tid in each.tids], records)
    late(program)
    status, every = program.space(8), program.data(b"\xff" * 8)
    # All of them before any runs: one that computes would have the CPU that this is waiting for.
    for each in members:
        if not each.stopped:
            label, mask = f"let pid {each.pid} go", program.data(each.mask.to_bytes(8, "little"))
            program.syscall("ptrace", PTRACE_SETSIGMASK, each.pid, 8, every, label=label, ignore=True)
            program.syscall("ptrace", PTRACE_CONT, each.pid, 0, 0, label=label, ignore=True)
            program.syscall("wait4", each.pid, status, WALL, 0, label=label, ignore=True)
            program.syscall("ptrace", PTRACE_SETSIGMASK, each.pid, 8, mask, label=label, ignore=True)
    for tid in (tid for each in members for tid in each.tids):
        program.syscall("ptrace", PTRACE_DETACH, tid, 0, 0, label=f"let thread {tid} go", ignore=True)
    _leave(program, -1 if stay else 0)
    return program, revocable


def _begin_release(program: Program) -> None:
    # The answer to an agent that is dead must not kill us: in a PID namespace of its own, the process with us.
    pipe = program.data((1 << (SIGPIPE - 1)).to_bytes(8, "little"))
    program.syscall("rt_sigprocmask", SIG_BLOCK, pipe, 0, 8, label="block SIGPIPE")
    program.syscall("prctl", PR_SET_PDEATHSIG, 0, label="outlive the agent")


def _untie(program: Program, tids: Sequence[int], records: Records) -> int:
    """With what the journal says of it. Returns how many ops there are up to the last tie."""

    def write(record: bytes, what: str, ignore: bool = False) -> None:
        size, label = len(record), f"{what} in the journal"
        expect = None if ignore else size
        program.syscall("write", JOURNAL, program.data(record), size, label=label, expect=expect, ignore=ignore)

    write(records.committed, "COMMITTED")
    program.syscall("fdatasync", JOURNAL, label="the journal on the disk")
    for tid in (*tids[:-1], None, tids[-1]):
        if tid is None:
            write(records.releasing, "RELEASING")
        else:
            label = f"untie thread {tid} from the overseer's life"
            program.syscall("ptrace", PTRACE_SETOPTIONS, tid, 0, _FREE, label=label)
    revocable = len(program)
    # What fails from here on cannot be undone, and does not matter: a thread may have been killed, the disk be full.
    write(records.released, "RELEASED", ignore=True)
    return revocable


def _leave(program: Program, stay: int) -> None:
    """``stay``: until which child has ended, -1 for all; 0: not at all."""
    low = OVERSEER_CONTROL
    program.syscall("close_range", 0, low - 1, 0, label="descriptors of the overseer")
    program.syscall("close_range", low + 1, 0xFFFFFFFF, 0, label="descriptors of the overseer")
    program.op(OpKind.LEAVE, OVERSEER_CONTROL, stay, label="leave")

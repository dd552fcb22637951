"""How restorees come into the world: the first is made by the overseer, each other one by another restoree."""

from __future__ import annotations

from collections.abc import Collection

from migrate.engine.overseer import (
    BUFFER_ROOM,
    DATA_FD,
    JOURNAL,
    MAP_HOLE,
    OPTIONS,
    PROT_RWX,
    PTRACE_SEIZE,
    SIGCHLD,
    STACK_ROOM,
    Channels,
    Hole,
    clone_args,
)
from migrate.engine.program import OpKind, Program
from migrate.engine.shares import CLONE_FILES
from migrate.pie import ENTER, blob


def create(pid: int, hole: Hole, channels: Channels, slot: int = 1, whole: Hole | None = None) -> Program:
    """The restoree, with the PID it had, in a copy of the restorer that lives in ``hole`` and waits for programs.
    ``whole``: that, and behind it such holes for others that will share its memory."""
    whole = whole or hole
    program = Program(f"the creation of pid {pid}")
    who = f"pid {pid}"
    code = blob()
    program.syscall(
        "mmap",
        whole.start,
        whole.size,
        PROT_RWX,
        MAP_HOLE,
        -1,
        0,
        label=f"room for the restorer of {who}",
        expect=hole.start,
    )
    program.op(OpKind.COPY, hole.start, program.data(code), len(code), label="the restorer's code")
    stack = hole.stack_top - STACK_ROOM
    with program.branch() as child:
        control = JOURNAL + slot
        program.syscall("rt_sigprocmask", 0, program.data(b"\xff" * 8), 0, 8, label="block all signals")
        program.syscall("dup3", control, channels.control, 0, label="control socket", expect=channels.control)
        program.syscall("dup3", DATA_FD, channels.data, 0, label="data descriptor", expect=channels.data)
        for index, number in enumerate(channels.streams):
            program.syscall("dup3", channels.given + index, number, 0, label="standard stream", expect=number)
        close_others(program, channels.all, "descriptors of its maker")
        _serve(program, hole, channels, who)
    args = clone_args(program, 0, stack, STACK_ROOM, pid, SIGCHLD)
    program.clone(args, child, label=f"{who} (clone3 with its number)", code=hole.start + ENTER)
    program.syscall("ptrace", PTRACE_SEIZE, pid, 0, OPTIONS, label=f"seize {who}")
    program.syscall("munmap", whole.start, whole.size, label="the overseer's own copy of the hole")
    program.syscall("close", JOURNAL + slot, label="the restoree's end of its socket")
    for index in range(len(channels.streams)):
        program.syscall("close", channels.given + index, label="a standard stream of the restoree")
    return program


def close_others(program: Program, keep: Collection[int], label: str) -> None:
    """All descriptors but these."""
    first = 0
    for number in (*sorted(keep), 1 << 32):
        if first < number:
            program.syscall("close_range", first, number - 1, 0, label=label)
        first = number + 1


def _serve(program: Program, hole: Hole, channels: Channels, who: str) -> None:
    program.op(OpKind.SERVE, channels.control, channels.data, hole.buffer, BUFFER_ROOM, label=f"restorer of {who}")


def beget(
    program: Program,
    pid: int,
    hole: Hole,
    code: int,
    channels: Channels,
    overseer: int,
    slot: int,
    exit_signal: int,
    flags: int = 0,
) -> None:
    """In a restoree: a child of it with the PID it had, in a copy of its memory, where the restorer waits for programs
    of its own. ``code``: where the restorer's code is; ``overseer``: its number as the restoree sees it; ``flags``: of
    clone(2), what the two share.

    Of all control sockets only the overseer has the ends for restorees that are not there yet, so that nobody else
    keeps one from ending; the child takes its own from there (pidfd_getfd(2), Linux 5.6). It lives on the same stack as
    its parent does, at its other end of time: each in a copy of its own. Where the two share memory, it has a ``hole``
    of its own, with its stack and its programs, and runs the code in its parent's. Where they share a descriptor table,
    it has its socket at another number than its parent, and all else is the parent's."""
    who = f"pid {pid}"
    with program.branch() as child:
        there = program.syscall("pidfd_open", overseer, 0, label="the overseer")
        control = program.syscall("pidfd_getfd", there, JOURNAL + slot, 0, label="control socket")
        program.syscall("dup3", control, channels.control, 0, label="control socket", expect=channels.control)
        if flags & CLONE_FILES:
            for number in (there, control):
                program.syscall("close", number, label="descriptors that were needed for a while")
        else:
            close_others(program, channels.all, "descriptors of its maker")
        _serve(program, hole, channels, who)
    args = clone_args(program, flags, hole.stack_top - STACK_ROOM, STACK_ROOM, pid, exit_signal)
    program.clone(args, child, label=f"{who} (clone3 with its number)", code=code + ENTER)


def adopt(program: Program, pid: int) -> None:
    """In the overseer: from now on the life of a restoree that another one has begotten hangs on it. Until then it
    ends at the end of its control socket."""
    program.syscall("ptrace", PTRACE_SEIZE, pid, 0, OPTIONS, label=f"seize pid {pid}")


def hand_over(program: Program, slot: int) -> None:
    """In the overseer, when the restoree has taken its socket."""
    program.syscall("close", JOURNAL + slot, label="the restoree's end of its socket")

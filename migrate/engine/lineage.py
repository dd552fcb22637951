"""How the restorees of a tree come into the world: programs for the parents among them and for the overseer.

Each is begotten by its parent, when that is in the session which the child is to inherit; see `engine.descent`. At once
the overseer becomes its tracer too, so that it ends with the overseer; between the two, and if the overseer dies
just then, it ends at the end of its control socket. What it is to share with others it has from its parent; see
`engine.sharing`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from termios import TIOCSCTTY, TIOCSPGRP

from migrate.engine import births, overseer
from migrate.engine.descent import Descent
from migrate.engine.kernel.prctl import PR_SET_CHILD_SUBREAPER, PR_SET_NAME
from migrate.engine.kin import SIGCHLD, Kin, Zombie
from migrate.engine.kinds.children import WALL, WEXITED, WNOWAIT
from migrate.engine.kinds.placing import AT_FDCWD
from migrate.engine.kinds.terminal import path
from migrate.engine.overseer import Channels, Hole
from migrate.engine.program import Buffer, OpKind, Program
from migrate.engine.shares import CLONE_FILES, CLONE_IO
from migrate.engine.sharing import Birth, Leave, Sharing, Step
from migrate.errors import KinChanged
from migrate.pie import ENTER

OVERSEER = 0  # slot
P_PID, CLONE_VM, SIG_SETMASK, RLIMIT_CORE = 1, 0x100, 2, 4
IOPRIO_WHO_PROCESS, _SOME_PRIORITY = 1, 2 << 13 | 4  # ioprio_set(2): best effort, until its own is restored


@dataclass(frozen=True)
class Nursery:
    """Where restorees are made. ``hole``: of all that have memory of their own; ``holes``, ``channels``, ``slots``,
    ``keeps``: of each, by position, the last one being what else than its channels it has open; ``seen``: the
    overseer's number as the restorees see it."""

    hole: Hole
    holes: Sequence[Hole]
    channels: Sequence[Channels]
    seen: int
    slots: Sequence[int]
    keeps: Sequence[Collection[int]]


def creation(
    tree: Sequence[Kin],
    nursery: Nursery,
    there: Collection[int] = (0,),
    leaders: Collection[int] = (),
    makers: Iterable[int] | None = None,
    holders: Collection[int] = (),
    settled: Collection[int] = (),
) -> Iterator[tuple[int, Program]]:
    """When some are there, at first the first one: slots and programs. ``there``: positions of those, and ``leaders``:
    of those among them that lead their session by now; ``makers``: only what these make; ``holders``: of those that
    have their controlling terminal by now; ``settled``: who has made others by now, or has had the time to. Raises
    KinChanged: some could only have been made earlier."""
    descent = Descent(tree)
    sharing = Sharing(tree, descent)
    for parent in descent.makers(there) if makers is None else makers:
        each = tree[parent]
        times = {child: when for child, when in descent.times(parent).items() if child not in there}
        early = [child for child, when in times.items() if when[-1] == 0]
        bare = [child for child, when in times.items() if when[-1] == 1]
        leads = descent.leads(parent) and parent not in leaders
        if early and parent in leaders:
            raise KinChanged(f"process {tree[early[0]].pid} is in the session that its parent has left meanwhile")
        bereft = [(number, some) for number, some in descent.bereft(parent) if not set(some) <= set(there)]
        if any(set(some) & set(there) for _, some in bereft):
            raise KinChanged(f"process {each.pid} has adopted another one out of a session without a leader")
        orphans = [child for child in descent.adopted_from(parent) if child not in there]
        holds = descent.holds(parent) and parent not in holders
        if holds and any(tree[child].terminal == each.terminal for child in descent.makes(parent) if child in there):
            raise KinChanged(f"process {each.pid} has got its controlling terminal meanwhile")
        if bare and parent in holders:
            raise KinChanged(f"process {tree[bare[0]].pid} has no controlling terminal, and its parent has one")
        if not (times or leads or bereft or orphans or holds):
            continue
        adopters = sorted({tree[child].parent for child in orphans})
        for adopter in adopters:
            yield nursery.slots[adopter], adopts()
        program = Program(f"the children of pid {each.pid}")
        order = sharing.order(parent, times, parent in settled)
        if order is None:
            raise KinChanged(f"process {each.pid} has passed on what it shares in an order that is too late now")
        before, without, after = order
        _make(program, tree, parent, before, nursery)
        if leads:
            program.syscall("setsid", label="session", expect=each.pid)
        _make(program, tree, parent, without, nursery)
        if holds:
            _with_terminal(program, each.terminal, TIOCSCTTY, 0, "controlling terminal")
        _make(program, tree, parent, after, nursery)
        for number, some in bereft:
            program.syscall("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, label="child subreaper, for now")
            _stand_in(program, tree, some, nursery, number)
            program.syscall("prctl", PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0, label="no child subreaper")
        for child in orphans:
            _stand_in(program, tree, [child], nursery, 0)
        yield nursery.slots[parent], program
        for adopter in adopters:
            yield nursery.slots[adopter], adopts(False)
        born = [step.child for steps in order for step in steps if isinstance(step, Birth)]
        born += [*(child for _, some in bereft for child in some), *orphans]
        if born:
            adoption = Program(f"the adoption of the children of pid {each.pid}")
            for position in born:
                births.adopt(adoption, tree[position].pid)
            yield OVERSEER, adoption
            for position in born:
                # it has its socket when it answers
                yield nursery.slots[position], Program(f"a word of pid {tree[position].pid}")
                socket = Program(f"the socket of pid {tree[position].pid}")
                births.hand_over(socket, nursery.slots[position])
                yield OVERSEER, socket


def _with_terminal(program: Program, terminal: int, what: int, argument: Buffer | int, words: str) -> None:
    """By the leader of a session."""
    name, label = path(terminal), f"{words} {path(terminal)}"
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    number = program.syscall("openat", AT_FDCWD, program.string(name), flags, 0, label=label)
    program.syscall("ioctl", number, what, argument, label=label)
    program.syscall("close", number, label=label)


def _stand_in(program: Program, tree: Sequence[Kin], orphans: Sequence[int], nursery: Nursery, session: int) -> None:
    """A child for a moment, which begets these and ends: then they are those of the nearest subreaper above it.
    ``session``: that it is to lead, and its number; 0: none, and any."""
    who = f"a leader for session {session}" if session else "a parent for a moment"
    with program.branch() as child:
        if session:
            program.syscall("setsid", label=f"session {session}", expect=session)
        for position in orphans:
            _beget(program, tree, position, nursery)
        program.syscall("exit_group", 0, label=f"the end of {who}")
    stack = nursery.hole.stack_top - overseer.STACK_ROOM
    args = overseer.clone_args(program, 0, stack, overseer.STACK_ROOM, session, SIGCHLD)
    made = program.clone(args, child, label=f"{who} (clone3)", code=nursery.hole.start + ENTER)
    status = program.space(8)
    program.syscall("wait4", made, status, WALL, 0, label=f"wait for {who}")
    program.op(OpKind.CHECK, status, 0xFFFFFFFF, 0, label=f"how {who} has ended")
    nothing = program.data(bytes(32))
    program.syscall("rt_sigaction", SIGCHLD, nothing, 0, 8, label=f"nothing is told of the end of {who}")


def _make(program: Program, tree: Sequence[Kin], parent: int, steps: Sequence[Step], nursery: Nursery) -> None:
    who = f"pid {tree[parent].pid}"
    for step in steps:
        if isinstance(step, Leave):
            leave(program, step.flags, nursery.channels[parent], nursery.keeps[parent], who)
            continue
        if step.flags & CLONE_IO:  # where there is none to share, none is shared (copy_io() in block/blk-ioc.c)
            program.syscall("ioprio_set", IOPRIO_WHO_PROCESS, 0, _SOME_PRIORITY, label=f"I/O context of {who}")
        _beget(program, tree, step.child, nursery, step.flags)


def leave(program: Program, flags: int, channels: Channels, keeps: Collection[int], who: str) -> None:
    """In a restoree: have for itself what others share with it. ``keeps``: its descriptors besides ``channels``."""
    program.syscall("unshare", flags, label=f"what {who} shares no more (unshare)")
    if flags & CLONE_FILES:
        births.close_others(program, channels.all | frozenset(keeps), f"descriptors of others in {who}")


def _beget(program: Program, tree: Sequence[Kin], position: int, nursery: Nursery, flags: int = 0) -> None:
    each, slot, channels = tree[position], nursery.slots[position], nursery.channels[position]
    hole, code = nursery.holes[position], nursery.hole.start
    births.beget(program, each.pid, hole, code, channels, nursery.seen, slot, each.exit_signal, flags)


def adopts(does: bool = True) -> Program:
    """For one that takes over the children of another that has ended; its own wish comes at the end."""
    program = Program("the adoption of orphans")
    program.syscall("prctl", PR_SET_CHILD_SUBREAPER, int(does), 0, 0, 0, label="child subreaper, for now")
    return program


def removal(each: Kin, parent_slot: int) -> Iterator[tuple[int, Program]]:
    """Of a restoree whose original has ended: slots and programs. Its tracer is told of its end first, then its parent
    (exit_notify() in kernel/exit.c)."""
    who = f"pid {each.pid}, which has ended meanwhile"
    program = Program(f"the end of {who}")
    program.syscall("kill", each.pid, overseer.SIGKILL, label=f"kill {who}")
    program.syscall("wait4", each.pid, 0, WALL, 0, label=f"wait for {who}", expect=each.pid)
    yield OVERSEER, program
    program = Program(f"the child pid {each.pid}, which has ended")
    program.syscall("wait4", each.pid, 0, WALL, 0, label=f"wait for {who}", expect=each.pid)
    if each.exit_signal:
        nothing = program.data(bytes(32))
        program.syscall("rt_sigaction", each.exit_signal, nothing, 0, 8, label=f"nothing is told of the end of {who}")
    yield parent_slot, program


def groups(tree: Sequence[Kin], hole: Hole) -> Iterator[tuple[int, Program]]:
    """Process groups, and those who have ended, as they are now: first those that lead a group, dead or alive, then
    the others join. A group whose leader is gone for good gets one for a moment."""
    descent = Descent(tree)
    found = descent.groups
    leaders = [position for position, group in enumerate(found) if group == tree[position].pid]
    others = [position for position, group in enumerate(found) if group and position not in leaders]
    ghosts = descent.ghosts
    yield from (_joins(tree, position, found[position]) for position in leaders)
    for position, number in ghosts:
        program = Program(f"a leader for process group {number}")
        _end(program, Zombie(number, 0, number, tree[position].session, 0, "ghost"), number, hole)
        yield position, program
    dead = [(position, ended) for position, member in enumerate(tree) for ended in member.zombies]
    for leads in (True, False):
        for position, ended in dead:
            if (ended.pgrp == ended.pid) == leads:
                program = Program(f"pid {ended.pid}, which has ended")
                _end(program, ended, descent.group(ended.pgrp), hole)
                yield position, program
    yield from (_joins(tree, position, found[position]) for position in others)
    for position, each in enumerate(tree):
        if descent.holds(position) and each.foreground:
            program = Program(f"the terminal of pid {each.pid}")
            group = program.data(struct.pack("<i", descent.group(each.foreground)))
            _with_terminal(program, each.terminal, TIOCSPGRP, group, "group in the foreground of")
            yield position, program
    for position, number in ghosts:
        program = Program(f"the end of the leader of process group {number}")
        program.syscall("waitid", P_PID, number, 0, WEXITED | WALL, 0, label=f"wait for {number}")
        yield position, program


def _joins(tree: Sequence[Kin], position: int, group: int) -> tuple[int, Program]:
    program = Program(f"the process group of pid {tree[position].pid}")
    program.syscall("setpgid", 0, group, label="process group")
    return position, program


def _end(program: Program, zombie: Zombie, group: int, hole: Hole) -> None:
    """A child that ends as that one did, and is not waited for. It lives in the memory of its parent, so that nothing
    has to be copied. The signal for its end is taken out of the queue: the one that the parent has got, or not, is
    restored with the others (sigaction(2): to ignore a signal discards those that wait, and so does SIG_DFL where that
    ignores it)."""
    who, nothing = f"pid {zombie.pid}", program.data(bytes(32))
    number, code = zombie.status & 0x7F, zombie.status >> 8 & 0xFF
    with program.branch() as child:
        program.syscall("prctl", PR_SET_NAME, program.string(zombie.name), 0, 0, 0, label=f"name of {who}")
        if zombie.session == zombie.pid:
            program.syscall("setsid", label=f"session of {who}")
        else:
            program.syscall("setpgid", 0, group, label=f"process group of {who}")
        if number:
            program.syscall("prlimit64", 0, RLIMIT_CORE, program.data(bytes(16)), 0, label="no core dump")
            program.syscall("rt_sigprocmask", SIG_SETMASK, nothing, 0, 8, label="no signal is blocked")
            program.syscall("kill", zombie.pid, number, label=f"the end of {who}")
        program.syscall("exit_group", code, label=f"the end of {who}")
    stack = hole.thread_stack(0)
    args = overseer.clone_args(program, CLONE_VM, stack, overseer.THREAD_STACK, zombie.pid, zombie.exit_signal)
    program.clone(args, child, label=f"{who} (clone3 with its number)")
    info = program.space(128)
    how = WEXITED | WNOWAIT | WALL
    program.syscall("waitid", P_PID, zombie.pid, info, how, 0, label=f"until {who} has ended")
    program.op(OpKind.CHECK, info.at(24), 0xFFFFFFFF, number or code, label=f"how {who} has ended")  # si_status
    program.syscall("rt_sigaction", SIGCHLD, nothing, 0, 8, label=f"nothing is told of the end of {who}")

"""How the restorees of a tree come into the world: programs for the parents among them and for the overseer.

Each is begotten by its parent, when that is in the session which the child is to inherit; see `migrate.engine.kin`. At
once the overseer becomes its tracer too, so that it ends with the overseer; between the two, and if the overseer dies
just then, it ends at the end of its control socket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from migrate.engine import kin, overseer
from migrate.engine.kernel.prctl import PR_SET_CHILD_SUBREAPER, PR_SET_NAME
from migrate.engine.kin import SIGCHLD, Kin, Zombie
from migrate.engine.kinds.children import WALL, WEXITED, WNOWAIT
from migrate.engine.overseer import Channels, Hole
from migrate.engine.program import OpKind, Program
from migrate.errors import KinChanged

OVERSEER = 0  # slot
P_PID, CLONE_VM, SIG_SETMASK, RLIMIT_CORE = 1, 0x100, 2, 4


def birth_order(tree: Sequence[Kin]) -> list[int]:
    """Positions, so that the children of each come in the order in which they are begotten when all are begotten at
    once."""
    found = [0]
    for parent in range(len(tree)):
        early, late = _children(tree, parent)
        found += [*early, *late]
    return found


def _children(tree: Sequence[Kin], parent: int) -> tuple[list[int], list[int]]:
    """Before and after the parent leads its session."""
    born = [position for position, each in enumerate(tree) if each.parent == parent]
    early = [position for position in born if kin.before_setsid(tree, position)]
    return early, [position for position in born if position not in early]


@dataclass(frozen=True)
class Nursery:
    """Where restorees are made. ``slots``: of each, by position; ``seen``: the overseer's number as the restorees see
    it."""

    hole: Hole
    channels: Channels
    seen: int
    slots: Sequence[int]


def generations(tree: Sequence[Kin]) -> list[list[int]]:
    """Positions: the first, its children, theirs, and so on."""
    found, left = [[0]], set(range(1, len(tree)))
    while left:
        found.append([position for position in sorted(left) if tree[position].parent in found[-1]])
        left -= set(found[-1])
    return found


def creation(
    tree: Sequence[Kin],
    nursery: Nursery,
    there: Collection[int] = (0,),
    leaders: Collection[int] = (),
    parents: Iterable[int] | None = None,
) -> Iterator[tuple[int, Program]]:
    """When some are there, at first the first one: slots and programs. ``there``: positions of those, and ``leaders``:
    of those among them that lead their session by now; ``parents``: only the children of these. Raises KinChanged: some
    could only have been made earlier."""
    for parent in range(len(tree)) if parents is None else parents:
        each = tree[parent]
        early, late = ([child for child in some if child not in there] for some in _children(tree, parent))
        leads = each.session == each.pid and parent not in leaders
        if early and parent in leaders:
            raise KinChanged(f"process {tree[early[0]].pid} is in the session that its parent has left meanwhile")
        if not (early or late or leads):
            continue
        program = Program(f"the children of pid {each.pid}")
        for position in early:
            _beget(program, tree, position, nursery)
        if leads:
            program.syscall("setsid", label="session", expect=each.pid)
        for position in late:
            _beget(program, tree, position, nursery)
        yield nursery.slots[parent], program
        if early or late:
            adoption = Program(f"the adoption of the children of pid {each.pid}")
            for position in (*early, *late):
                overseer.adopt(adoption, tree[position].pid)
            yield OVERSEER, adoption
            for position in (*early, *late):
                # it has its socket when it answers
                yield nursery.slots[position], Program(f"a word of pid {tree[position].pid}")
                socket = Program(f"the socket of pid {tree[position].pid}")
                overseer.hand_over(socket, nursery.slots[position])
                yield OVERSEER, socket


def _beget(program: Program, tree: Sequence[Kin], position: int, nursery: Nursery) -> None:
    each, slot = tree[position], nursery.slots[position]
    overseer.beget(program, each.pid, nursery.hole, nursery.channels, nursery.seen, slot, each.exit_signal)


def adopts() -> Program:
    """For one that has taken over the children of another that has ended; its own wish comes at the end."""
    program = Program("the adoption of orphans")
    program.syscall("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, label="child subreaper, for now")
    return program


def removal(each: Kin, parent_slot: int) -> Iterator[tuple[int, Program]]:
    """Of a restoree whose original has ended: slots and programs. Its tracer is told of its end first, then its parent
    (exit_notify() in kernel/exit.c)."""
    who = f"pid {each.pid}, which has ended meanwhile"
    program = Program(f"the end of {who}")
    program.syscall("kill", each.pid, overseer.SIGKILL, label=f"kill {who}")
    program.syscall("wait4", each.pid, 0, overseer.WALL, 0, label=f"wait for {who}", expect=each.pid)
    yield OVERSEER, program
    program = Program(f"the child pid {each.pid}, which has ended")
    program.syscall("wait4", each.pid, 0, overseer.WALL, 0, label=f"wait for {who}", expect=each.pid)
    if each.exit_signal:
        nothing = program.data(bytes(32))
        program.syscall("rt_sigaction", each.exit_signal, nothing, 0, 8, label=f"nothing is told of the end of {who}")
    yield parent_slot, program


def groups(tree: Sequence[Kin], hole: Hole) -> Iterator[tuple[int, Program]]:
    """Process groups, and those who have ended, as they are now: first those that lead a group, dead or alive, then
    the others join. A group whose leader is gone for good gets one for a moment."""
    found = kin.groups(tree)
    leaders = [position for position, group in enumerate(found) if group == tree[position].pid]
    others = [position for position, group in enumerate(found) if group and position not in leaders]
    ghosts = kin.ghosts(tree)
    yield from (_joins(tree, position, found[position]) for position in leaders)
    for position, number in ghosts:
        program = Program(f"a leader for process group {number}")
        _end(program, Zombie(number, 0, number, tree[position].session, 0, "ghost"), number, hole)
        yield position, program
    dead = [(position, each) for position, member in enumerate(tree) for each in member.zombies]
    for leads in (True, False):
        for position, each in dead:
            if (each.pgrp == each.pid) == leads:
                program = Program(f"pid {each.pid}, which has ended")
                _end(program, each, kin.group(tree, each.pgrp), hole)
                yield position, program
    yield from (_joins(tree, position, found[position]) for position in others)
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

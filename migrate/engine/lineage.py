"""How the restorees of a tree come into the world: programs for the parents among them and for the overseer.

Each is begotten by its parent, when that is in the session which the child is to inherit; see `migrate.engine.kin`. At
once the overseer becomes its tracer too, so that it ends with the overseer; between the two, and if the overseer dies
just then, it ends at the end of its control socket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from migrate.engine import kin, overseer
from migrate.engine.kin import Kin
from migrate.engine.overseer import Channels, Hole
from migrate.engine.program import Program

_OVERSEER = -1  # in place of a position


def birth_order(tree: Sequence[Kin]) -> list[int]:
    """Positions, so that the children of each come in the order in which they are begotten."""
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


def creation(tree: Sequence[Kin], hole: Hole, channels: Channels, seen: int) -> Iterator[tuple[int, Program]]:
    """When the first one is there: (position, program), -1 for the overseer. ``seen``: the overseer's number as the
    restorees see it."""
    for parent, each in enumerate(tree):
        early, late = _children(tree, parent)
        leads = each.session == each.pid
        if not (early or late or leads):
            continue
        program = Program(f"the children of pid {each.pid}")
        for position in early:
            _beget(program, tree, position, hole, channels, seen)
        if leads:
            program.syscall("setsid", label="session", expect=each.pid)
        for position in late:
            _beget(program, tree, position, hole, channels, seen)
        yield parent, program
        if early or late:
            adoption = Program(f"the adoption of the children of pid {each.pid}")
            for position in (*early, *late):
                overseer.adopt(adoption, tree[position].pid)
            yield _OVERSEER, adoption
            for position in (*early, *late):
                yield position, Program(f"a word of pid {tree[position].pid}")  # it has its socket when it answers
                socket = Program(f"the socket of pid {tree[position].pid}")
                overseer.hand_over(socket, position + 1)
                yield _OVERSEER, socket


def _beget(
    program: Program, tree: Sequence[Kin], position: int, hole: Hole, channels: Channels, seen: int
) -> None:
    each = tree[position]
    overseer.beget(program, each.pid, hole, channels, seen, position + 1, each.exit_signal)


def groups(tree: Sequence[Kin]) -> list[tuple[int, Program]]:
    """Process groups as they are now: first those that lead one, then the others join."""
    found = kin.groups(tree)
    leaders = [position for position, group in enumerate(found) if group == tree[position].pid]
    others = [position for position, group in enumerate(found) if group and position not in leaders]
    made = []
    for position in (*leaders, *others):
        program = Program(f"the process group of pid {tree[position].pid}")
        program.syscall("setpgid", 0, found[position], label="process group")
        made.append((position, program))
    return made

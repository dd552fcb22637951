"""What it means for restorees that are there already when their originals come, go, or part: what some of them share no
longer, and what cannot be had any more, because it comes with the birth of a process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from migrate.engine import births, lineage
from migrate.engine.descent import Descent
from migrate.engine.kin import Kin
from migrate.engine.program import Program
from migrate.engine.shares import FILES, KINDS, Kind
from migrate.engine.sharing import Sharing
from migrate.errors import KinChanged
from migrate.replica import Replica


def leaving(
    members: Sequence[Replica], tree: Sequence[Kin], before: Mapping[Kind, Mapping[Replica, int]]
) -> Iterator[tuple[int, Program]]:
    """Programs for those that share less with each other than they did. ``before``: by whom they were, what was
    the same for two of them that shared it. Raises KinChanged."""
    sharing = Sharing(tree)
    flags: dict[int, int] = {}
    for kind in KINDS:
        parts: dict[int, dict[int, list[int]]] = {}
        for position, (member, label) in enumerate(zip(members, sharing.owners(kind), strict=True)):
            if member in before[kind]:
                parts.setdefault(before[kind][member], {}).setdefault(label, []).append(position)
        for some in parts.values():
            for each in sorted(some.values(), key=len)[:-1]:
                if len(each) > 1 or not kind.leaves:
                    who = f"process {tree[each[0]].pid}"
                    raise KinChanged(f"{who} has ceased to share its {kind.words} with others meanwhile")
                flags[each[0]] = flags.get(each[0], 0) | kind.flag
    for position, leaves in flags.items():
        member, who = members[position], f"pid {tree[position].pid}"
        program = Program(f"what {who} has for itself by now")
        lineage.leave(program, leaves, member.ground.channels, member.ground.numbers.values(), who)
        yield member.slot, program
    for label in {*before[FILES].values()}:
        table = [member for member in members if before[FILES].get(member) == label]
        fewer = len(table) < sum(each == label for each in before[FILES].values())
        yield from _clear_tables(members, tree, table, fewer)


def _clear_tables(
    members: Sequence[Replica], tree: Sequence[Kin], some: Sequence[Replica], fewer: bool
) -> Iterator[tuple[int, Program]]:
    """Of those that had one descriptor table: what was of such as have not got that any more. ``fewer``: some of
    them have ended."""
    sharing = Sharing(tree)
    owners = sharing.owners(FILES)
    tables = {owners[members.index(member)] for member in some}
    for position in tables if fewer or len(tables) > 1 else ():
        grounds = [members[each].ground for each in sharing.group(position, FILES)]
        keep = {number for each in grounds for number in (*each.channels.all, *each.numbers.values())}
        program = Program(f"what others have left to pid {tree[position].pid}")
        births.close_others(program, keep, "descriptors of others")
        yield members[position].slot, program


def check_late(tree: Sequence[Kin], there: Collection[int]) -> None:
    """Raises KinChanged where those that are new share something that they could only have got when others were
    made."""
    sharing, maker = Sharing(tree), Descent(tree).maker
    for kind in KINDS:
        for child, label in sharing.passing[kind].items():
            known = any(each in there for each in sharing.groups(kind)[label])
            wrong = not known if child in there else known and sharing.label(maker[child], kind) != label
            if wrong and (child in there or maker[child] in there):
                who = f"process {tree[child].pid}"
                raise KinChanged(f"{who} shares its {kind.words} with another one since it has been made here")


def still_holding(
    members: Sequence[Replica], tree: Sequence[Kin], before: Mapping[Replica, Kin], ended: Collection[int]
) -> list[int]:
    """Positions of those that had their controlling terminal, and have it. ``ended``: who is gone; with the leader
    of a session its terminal is gone for all of it, here and there. Raises KinChanged."""
    found = []
    for position, (member, each) in enumerate(zip(members, tree, strict=True)):
        was = before.get(member)
        if was is None or was.terminal < 0 or was.session in ended:
            continue
        if was.terminal != each.terminal:
            raise KinChanged(f"process {each.pid} has another controlling terminal by now")
        found.append(position)
    return found

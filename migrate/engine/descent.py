"""In which order, and by whom, the processes of a tree are to be made, so that they are in their sessions and groups.

Which session a process is in is decided when it is made: it inherits that of its parent as it is then. So a restoree
that leads a session makes the children that are in its former one first, then calls setsid(2), then makes the others.
The same holds for the controlling terminal of a session, which a
child has where its parent has it: those without it are made before the leader gets it, the others after that.
Process groups can be joined at any time within a session (setpgid(2)), as long as their leader is there. One that was
adopted (its parent has ended, and a subreaper has it) is made by a stand-in of that parent, which ends; and so is the
leader of a session that has ended.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

from migrate.engine.kin import SIGCHLD, Kin, Zombie
from migrate.engine.kinds.terminal import path
from migrate.errors import Problem

_CORE = 0x80  # in a wait status


class Descent:
    """Of a tree, by position: parents come before their children."""

    def __init__(self, tree: Sequence[Kin]) -> None:
        self.tree = tree
        self._at = {each.pid: position for position, each in enumerate(tree)}
        self._children: list[list[int]] = [[] for _ in tree]
        for position, each in enumerate(tree):
            if each.parent >= 0:
                self._children[each.parent].append(position)
        self._needed: list[int | None] = [None] * len(tree)
        for position in reversed(range(len(tree))):
            self._needed[position] = self._need(position)
        self.orphans = [position for position in range(len(tree)) if self._is_orphan(position)]

    def _need(self, position: int) -> int | None:
        """The session that it must be made in; None: any."""
        each = self.tree[position]
        if each.session != each.pid:
            return each.session
        for child in self._children[position]:
            needed = self._needed[child]
            # Out of one that is led by a descendant of its own it has adopted the child.
            if needed not in (None, each.pid) and position not in self._ancestors(self._at.get(needed or 0, -1)):
                return needed
        return None

    def _ancestors(self, position: int) -> set[int]:
        found = set()
        while position >= 0 and (position := self.tree[position].parent) >= 0:
            found.add(position)
        return found

    def _is_orphan(self, position: int) -> bool:
        """Whether its parent has never been in the session that it must be made in: it was another's child, and has
        been adopted since (PR_SET_CHILD_SUBREAPER, prctl(2))."""
        needed, above = self._needed[position], self.tree[position].parent
        if needed is None or above < 0:
            return False
        parent = self.tree[above]
        leads = parent.session == parent.pid and above > 0  # the first never was in another one of theirs
        return not (needed == parent.session or (leads and self._needed[above] == needed))

    # Who makes whom

    def leads(self, position: int) -> bool:
        """Its session."""
        return self.tree[position].session == self.tree[position].pid

    def children(self, position: int) -> tuple[list[int], list[int]]:
        """Those that it makes itself: before it leads its session, and after that."""
        own = self.tree[position].pid
        born = [child for child in self._children[position] if child not in self.orphans]
        leads = self.leads(position)
        early = [child for child in born if leads and self._needed[child] not in (None, own)]
        return early, [child for child in born if child not in early]

    @cached_property
    def sessions(self) -> dict[int, list[int]]:
        """Those whose leader has ended, and who was adopted out of each."""
        found: dict[int, list[int]] = {}
        for position in self.orphans:
            session = self._needed[position]
            if session is not None and session not in self._at:
                found.setdefault(session, []).append(position)
        return found

    def bereft(self, adopter: int) -> list[tuple[int, list[int]]]:
        """Those of ``sessions`` out of which it has adopted them."""
        return [(number, some) for number, some in self.sessions.items() if self.tree[some[0]].parent == adopter]

    def adopted_from(self, leader: int) -> list[int]:
        """Who was adopted by others out of the session that it leads."""
        own = self.tree[leader].pid
        return [each for each in self.orphans if self._needed[each] == own] if self.leads(leader) else []

    def makes(self, maker: int) -> list[int]:
        """Those that are made by it, with a copy of its memory: its children, and such as are adopted by others."""
        early, late = self.children(maker)
        return [*early, *late, *(child for _, some in self.bereft(maker) for child in some), *self.adopted_from(maker)]

    @cached_property
    def maker(self) -> dict[int, int]:
        """Of each but the first."""
        return {made: maker for maker in range(len(self.tree)) for made in self.makes(maker)}

    def generations(self, there: Collection[int] = (0,)) -> Iterator[list[int]]:
        """First those that are ``there`` from the beginning, then those that they make, and so on."""
        made, left = set(there), set(range(len(self.tree)))
        while ready := sorted(made & left):  # whom this does not lead to, `problems` has told of
            yield ready
            left.difference_update(ready)
            for maker in ready:
                made.update(self.makes(maker))

    def makers(self, there: Collection[int] = (0,)) -> Iterator[int]:
        """All that make others, or lead a session, each when it is there itself."""
        for generation in self.generations(there):
            yield from generation

    # Terminals

    def holds(self, position: int) -> bool:
        """Whether it leads a session that has a controlling terminal."""
        return self.leads(position) and self.tree[position].terminal >= 0

    @cached_property
    def _born_with(self) -> list[int | None]:
        """Of each the controlling terminal that it must inherit, -1 for none; None: any, for setsid(2) takes it away
        again, before it makes others."""
        found: list[int | None] = [each.terminal for each in self.tree]
        for position in reversed(range(len(self.tree))):
            if self.leads(position):
                wanted = (found[child] for child in self.children(position)[0])
                found[position] = next((terminal for terminal in wanted if terminal is not None), None)
        return found

    def times(self, maker: int) -> dict[int, range]:
        """Of those that it makes itself, when they can be made: 0: before it leads its session; 1: before that has its
        controlling terminal; 2: after all that. Each in the order of the tree."""
        early, late = self.children(maker)
        found = dict.fromkeys(early, range(1))
        for child in late:
            terminal = self._born_with[child]
            if self._needed[child] is None or not self.leads(maker):
                found[child] = range(3)
            elif terminal is None or not self.holds(maker):
                found[child] = range(1, 3)
            else:
                found[child] = range(1, 2) if terminal < 0 else range(2, 3)
        return found

    def _leader_of(self, position: int) -> int | None:
        """The leader of its session, where that has the same controlling terminal."""
        each = self.tree[position]
        leader = self._at.get(each.session)
        return leader if leader is not None and self.tree[leader].terminal == each.terminal else None

    def _inherits_wrongly(self, position: int) -> bool:
        """Whether who makes it never has the controlling terminal, or the lack of one, that it must inherit."""
        wanted, maker = self._born_with[position], self.maker.get(position)
        if wanted is None:
            return False
        if maker is None:
            return wanted >= 0
        above = self.tree[maker].terminal
        early, late = self.children(maker)
        if position in early:
            return wanted != self._born_with[maker]
        if position in late:
            return wanted != above and not (wanted < 0 and self.leads(maker))
        return wanted != (above if position in self.adopted_from(maker) else -1)

    # Groups

    @cached_property
    def _numbers(self) -> set[int]:
        """Of all, dead or alive."""
        return {number for each in self.tree for number in (each.pid, *(dead.pid for dead in each.zombies))}

    @cached_property
    def groups(self) -> list[int]:
        """The process group of each, by number; 0: it stays in that which setsid(2) gave it."""
        return [0 if each.session == each.pid else self.group(each.pgrp) for each in self.tree]

    def group(self, pgrp: int) -> int:
        """What becomes of a group: that of the first stays behind, where its leader is none of them, and those who were
        in it get one of the first."""
        first = self.tree[0]
        return first.pid if pgrp == first.pgrp and pgrp not in self._numbers else pgrp

    @cached_property
    def ghosts(self) -> list[tuple[int, int]]:
        """Groups whose leader is gone: a position from where it can be made, and its number."""
        found: dict[int, int] = {}
        wanted = [*enumerate(self.groups)]
        wanted += [(position, each.foreground) for position, each in enumerate(self.tree) if self.holds(position)]
        for position, number in wanted:
            if number and number not in self._numbers and number not in self.sessions:
                found.setdefault(number, position)
        return [(position, number) for number, position in found.items()]

    @property
    def numbers(self) -> set[int]:
        """All that must be free, besides those of threads."""
        ended = {each.pid for kin in self.tree for each in kin.zombies}
        return ended | {number for _, number in self.ghosts} | {*self.sessions}

    # What cannot be

    def problems(self) -> list[Problem]:
        """Sessions and process groups that could not be made again."""
        first = self.tree[0]
        found = [problem for each in self.tree for dead in each.zombies for problem in _unmakable(each, dead)]
        for position, each in enumerate(self.tree):
            where = f"pid {each.pid}"
            known = each.pgrp in self._numbers or each.pgrp in self.sessions or each.pgrp == first.pgrp
            if position and not known and _exists(each.pgrp):
                found.append(Problem(where, f"the leader of its process group {each.pgrp} is not among them"))
            elif position in self.orphans and (what := self._unadoptable(position)):
                found.append(Problem(where, what))
            if each.terminal >= 0 and self._leader_of(position) is None:
                what = f"its controlling terminal {path(each.terminal)} moves, and the leader of its session does not"
                found.append(Problem(where, what))
            elif self._inherits_wrongly(position):
                terminal = path(each.terminal) if each.terminal >= 0 else "none"
                what = f"its controlling terminal is {terminal}, and no order of making it again leads to that"
                found.append(Problem(where, what))
        return found

    def _unadoptable(self, position: int) -> str:
        """Why one that was adopted cannot be made again, or nothing."""
        session, adopter = self._needed[position] or 0, self.tree[position].parent
        if session in self._at:
            possible = adopter in self._ancestors(self._at[session])
            return "" if possible else f"it is in session {session}, and its parent never was"
        if session in self._numbers:
            return f"the leader of its session {session} has ended, and has not been waited for"
        if _exists(session):
            return f"the leader of its session {session} is not among them"
        if any(self.tree[other].parent != adopter for other in self.sessions[session]):
            return f"its session {session} has no leader, and was left by others to another parent"
        return ""


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _unmakable(kin: Kin, zombie: Zombie) -> list[Problem]:
    where = f"pid {zombie.pid}"
    if zombie.exit_signal != SIGCHLD:
        return [Problem(where, f"it has ended, and its parent gets signal {zombie.exit_signal} for it", "wait for it")]
    if zombie.status & _CORE:
        return [Problem(where, "it has ended with a core dump", "wait for it (waitpid(2))")]
    if zombie.session not in (kin.session, zombie.pid):
        return [Problem(where, "it has ended, and was in another session than its parent", "wait for it")]
    return []

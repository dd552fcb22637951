"""How the restorees of a tree come to share what their originals share: by which flags they are made, in which order.

What clone(2) lets two processes share is there from the birth of one of them, and comes from its maker. So whoever lies
between two that share has to have it too when it makes the next one: for what unshare(2) can give up (descriptors,
current directory, semaphores to undo) it does not matter what it has in the end, and one process can pass on several
one after the other; but what it has from its own maker, and gives up, it cannot have again. Memory, signal actions and
I/O contexts are only passed on by who shares them in the end.

That makes an order among the children of each, within that of sessions and controlling terminals (`Descent.times`).
Where there is none, they cannot be moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from migrate.engine.descent import Descent
from migrate.engine.kin import Kin
from migrate.engine.shares import ALONE, KINDS, Kind
from migrate.errors import Problem

TIMES = range(3)  # see `Descent.times`
_TRIES = 10_000  # at an order


@dataclass(frozen=True)
class Birth:
    """``flags``: of clone3(2), besides those that every restoree is made with."""

    child: int
    flags: int


@dataclass(frozen=True)
class Leave:
    """unshare(2) by the maker: what it passed on until now is not its own."""

    flags: int


Step = Birth | Leave


class Sharing:
    """Of a tree, by position."""

    def __init__(self, tree: Sequence[Kin], descent: Descent | None = None) -> None:
        self.tree = tree
        self._given = descent
        alone = all(each.shares is ALONE or each.shares == ALONE for each in tree)
        self._groups = {kind: {} if alone else self._grouped(kind) for kind in KINDS}
        self.passing: dict[Kind, dict[int, int]] = {}  # of those who are made with it: the label of what they have then
        self._impossible: list[tuple[int, Kind]] = []
        for kind in KINDS:
            self._connect(kind)

    @cached_property
    def _descent(self) -> Descent:
        return self._given or Descent(self.tree)

    def label(self, position: int, kind: Kind) -> int:
        """With whom it shares that: see `Shares`."""
        return self.tree[position].shares.of(kind)

    def _grouped(self, kind: Kind) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for position in range(len(self.tree)):
            if label := self.label(position, kind):
                found.setdefault(label, []).append(position)
        return {label: some for label, some in found.items() if len(some) > 1}

    def groups(self, kind: Kind) -> dict[int, list[int]]:
        """Who shares this, by label."""
        return self._groups[kind]

    def group(self, position: int, kind: Kind) -> list[int]:
        """All that share this with it, and it itself."""
        return self._groups[kind].get(self.label(position, kind), [position])

    def owners(self, kind: Kind) -> list[int]:
        """Of each, the first of those that share this with it; itself where nobody does."""
        return [self.group(position, kind)[0] for position in range(len(self.tree))]

    @property
    def some(self) -> bool:
        """Whether any of them share anything."""
        return any(self._groups.values())

    def _connect(self, kind: Kind) -> None:
        """Along which ways from maker to child each is passed."""
        passing = self.passing[kind] = {}
        if not self._groups[kind]:
            return
        maker = self._descent.maker
        for label, some in self._groups[kind].items():
            ways = [self._way(each) for each in some]
            top = next((each for each in reversed(ways[0]) if all(each in way for way in ways)), None)
            if top is None:
                self._impossible.append((some[1], kind))
                continue
            for each in some:
                while each != top:
                    if passing.setdefault(each, label) != label:
                        self._impossible.append((each, kind))
                    each = maker[each]

    def _way(self, position: int) -> list[int]:
        """From the first to it."""
        way = [position]
        while (above := self._descent.maker.get(way[-1])) is not None:
            way.append(above)
        return way[::-1]

    # Who is made how

    def flags(self, child: int) -> int:
        """What it shares with its maker when it is made."""
        return sum(kind.flag for kind in KINDS if child in self.passing[kind])

    def steps(self, maker: int, settled: bool = False) -> list[list[Step]] | None:
        """In which order it makes those that it makes itself: at each of the `Descent.times`. None: there is none.
        ``settled``: it has come to what it has in the end, and begins with that."""
        return self.order(maker, self._descent.times(maker), settled)

    def order(self, maker: int, children: Collection[int], settled: bool = False) -> list[list[Step]] | None:
        """`steps` of some of its children."""
        times = {child: when for child, when in self._descent.times(maker).items() if child in children}
        if not self.some:
            return [[Birth(child, 0) for child, when in times.items() if when[-1] == time] for time in TIMES]
        made = _Search(self, maker, times, settled).found()
        return None if made is None else [[*self._as_steps(each for each in made if each[0] == time)] for time in TIMES]

    def _as_steps(self, made: Iterable[_Made]) -> Iterator[Step]:
        for _, child, leaves in made:
            if leaves:
                yield Leave(leaves)
            if child is not None:
                yield Birth(child, self.flags(child))

    def birth_order(self, born: Collection[int]) -> list[int]:
        """These, so that the children of each come in the order in which it comes to have them, when all are made at
        once by those that are there already."""
        found = [0]
        for maker in self._descent.makers():
            steps = self.order(maker, born, maker not in born) or ()
            made = [step.child for some in steps for step in some if isinstance(step, Birth)]
            found += [*made, *(each for each in self._descent.makes(maker) if each not in made)]
        return [each for each in found if each in born]

    def problems(self) -> list[Problem]:
        """What cannot be shared again."""
        if not self.some:
            return []
        found = dict(self._impossible)
        for kind in KINDS:
            found.update((position, kind) for position in self._descent.orphans if position in self.passing[kind])
        for maker in range(len(self.tree)):
            if self.steps(maker) is None:
                children = ((child, kind) for child in self._descent.makes(maker) for kind in KINDS)
                child, kind = next(one for one in children if one[0] in self.passing[one[1]])
                found.setdefault(child, kind)
        return [self._problem(position, kind) for position, kind in sorted(found.items(), key=lambda one: one[0])]

    def _problem(self, position: int, kind: Kind) -> Problem:
        label = self.passing[kind].get(position) or self.label(position, kind)
        one, other = self.groups(kind)[label][:2]
        what = f"it shares its {kind.words} with process {self.tree[one].pid}"
        return Problem(f"pid {self.tree[other].pid}", f"{what}, and no order of making them again leads to that")


_Made = tuple[int, int | None, int]  # when, who, and flags of what is left right before


class _Search:
    """For an order among the children of one maker, so that what it passes on is passed on in one go each, what it has
    from its own maker first, and what it has in the end last; and each of them at one of its ``times``."""

    def __init__(self, sharing: Sharing, maker: int, times: Mapping[int, range], settled: bool) -> None:
        passing = sharing.passing
        self._wanted = {
            child: {kind: passing[kind][child] for kind in KINDS if child in passing[kind]} for child in times
        }
        self._times = {child: when if self._wanted[child] else when[-1:] for child, when in times.items()}
        self._end = {kind: sharing.label(maker, kind) for kind in KINDS}
        self._begun = self._end if settled else {kind: passing[kind].get(maker, 0) for kind in KINDS}
        self._tries = 0

    def found(self) -> list[_Made] | None:
        """Who is made when, and what is to be left right before; None stands for nobody, at the end."""
        return self._go([*self._times], self._begun, TIMES[0])

    def _go(self, left: list[int], held: dict[Kind, int], now: int) -> list[_Made] | None:
        self._tries += 1
        if self._tries > _TRIES:
            return None
        made: list[_Made] = []
        while True:
            ready = {child for child in left if now in self._times[child] and self._fits(child, held)}
            made += [(now, child, 0) for child in left if child in ready]
            left = [child for child in left if child not in ready]
            if any(self._times[child][-1] == now for child in left):
                break
            if now == TIMES[-1]:
                flags = self._to(held, self._end)
                return None if flags is None else [*made, (now, None, flags)] if flags else made
            now += 1  # whoever is left can wait
        tried = []
        for child in left:
            wanted = self._wanted[child]
            if now not in self._times[child] or wanted in tried:
                continue
            tried.append(wanted)
            flags = self._to(held, wanted)
            given_up = [kind for kind in wanted if flags and flags & kind.flag]
            others = [self._wanted[other] for other in left]
            if flags is None or any(other.get(kind) == held[kind] for kind in given_up for other in others):
                continue  # or it is wanted once more
            found = self._go([each for each in left if each != child], {**held, **wanted}, now)
            if found is not None:
                return [*made, (now, child, flags), *found]
        return None

    def _fits(self, child: int, held: dict[Kind, int]) -> bool:
        return all(held[kind] == label for kind, label in self._wanted[child].items())

    def _to(self, held: dict[Kind, int], wanted: dict[Kind, int]) -> int | None:
        """Flags of what must be left so that it has this; None: it cannot have it. What has no label is its own, and
        becomes whatever is passed on next."""
        flags = 0
        for kind, label in wanted.items():
            now = held[kind]
            if now == label:
                continue
            if now and (not kind.leaves or now == self._end[kind] or label and label == self._begun[kind]):
                return None
            if now:
                flags |= kind.flag
            elif not kind.leaves and label != self._end[kind]:
                return None
        return flags

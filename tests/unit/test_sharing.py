"""By which flags, and in which order, the processes of a tree are made so that they share what they shared."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from migrate.engine.descent import Descent
from migrate.engine.kin import Kin
from migrate.engine.shares import FILES, FS, IO, KINDS, MEMORY, UNDO, Kind, Shares
from migrate.engine.sharing import Birth, Leave, Sharing


def family(parents: Sequence[int], **shares: Sequence[Sequence[int]]) -> list[Kin]:
    """``parents``: the position of that of each; ``shares``: by kind, groups of positions."""
    tree = [Kin(10 + at, parent, 17, 10, 10) for at, parent in enumerate(parents)]
    for name, groups in shares.items():
        for group in groups:
            for at in group:
                tree[at] = replace(tree[at], shares=replace(tree[at].shares, **{name: 10 + min(group)}))
    return tree


def births(tree: Sequence[Kin], maker: int) -> list[Birth | Leave]:
    found = Sharing(tree).steps(maker)
    assert found is not None
    return [step for some in found for step in some]


def carried_out(tree: Sequence[Kin]) -> dict[Kind, list[int]] | None:
    """By the rules of clone(2) and unshare(2): who has which object in the end. None where there is no order."""
    sharing, fresh = Sharing(tree), itertools.count(1)
    has = {kind: {0: next(fresh)} for kind in KINDS}
    for maker in Descent(tree).makers():
        steps = sharing.steps(maker)
        if steps is None:
            return None
        for step in itertools.chain(*steps):
            for kind in KINDS:
                if isinstance(step, Birth):
                    has[kind][step.child] = has[kind][maker] if step.flags & kind.flag else next(fresh)
                elif step.flags & kind.flag:
                    assert kind.leaves
                    has[kind][maker] = next(fresh)
    return {kind: [has[kind][at] for at in range(len(tree))] for kind in KINDS}


def is_as_wanted(tree: Sequence[Kin], has: dict[Kind, list[int]]) -> bool:
    pairs = itertools.combinations(range(len(tree)), 2)
    return all(
        (has[kind][one] == has[kind][other])
        == (tree[one].shares.of(kind) == tree[other].shares.of(kind) != 0)
        for one, other in pairs
        for kind in KINDS
    )


def test_what_a_child_shares_with_its_parent() -> None:
    tree = family([-1, 0, 0, 1], files=[[0, 1, 3]], fs=[[1, 3]], memory=[[0, 2]])
    assert births(tree, 0) == [Birth(1, FILES.flag), Birth(2, MEMORY.flag)]
    assert births(tree, 1) == [Birth(3, FILES.flag | FS.flag)]
    assert Sharing(tree).owners(FILES) == [0, 0, 2, 0] and Sharing(tree).owners(FS) == [0, 1, 2, 1]
    assert not Sharing(tree).problems()


def test_what_only_siblings_share_is_passed_on_by_their_parent() -> None:
    tree = family([-1, 0, 0, 0], files=[[1, 2]])
    assert births(tree, 0) == [Birth(3, 0), Birth(1, FILES.flag), Birth(2, FILES.flag), Leave(FILES.flag)]
    assert Sharing(tree).birth_order(range(4)) == [0, 3, 1, 2]
    late = family([-1, 0, 0, 0], files=[[0, 1, 2]])
    assert Sharing(late).birth_order([2, 3]) == [2, 3] and Sharing(late).birth_order(range(4)) == [0, 3, 1, 2]


def test_cousins_have_it_from_a_grandparent() -> None:
    tree = family([-1, 0, 0, 1, 2], undo=[[3, 4]], fs=[[0, 1]])
    assert births(tree, 1) == [Birth(3, UNDO.flag), Leave(UNDO.flag)]
    has = carried_out(tree)
    assert has is not None and is_as_wanted(tree, has)


@pytest.mark.parametrize(
    "tree",
    [
        family([-1, 0, 0], memory=[[1, 2]]),  # a parent cannot get another memory
        family([-1, 0, 0], io=[[1, 2]]),
        family([-1, 0, 1, 0], files=[[0, 1], [2, 3]]),  # what the child has of its parent it cannot give up and keep
        family([-1, 0, 0, 0, 0], files=[[1, 2], [3, 4]], fs=[[1, 3], [2, 4]]),  # no order is right for both
    ],
)
def test_what_cannot_be_made(tree: list[Kin]) -> None:
    (problem, *_) = Sharing(tree).problems()
    assert "and no order of making them again leads to that" in problem.what and "it shares its" in problem.what


def with_terminal(tree: list[Kin], *has: int) -> list[Kin]:
    """The first leads a session with a controlling terminal, which these of its children have."""
    return [replace(each, terminal=3 if at in (0, *has) else -1) for at, each in enumerate(tree)]


def test_a_table_is_passed_on_before_and_after_the_controlling_terminal() -> None:
    tree = with_terminal(family([-1, 0, 0, 0, 0, 0], files=[[2, 3], [0, 4]], fs=[[0, 5]]), 3, 4)
    found = Sharing(tree).steps(0)
    files, fs = Birth(4, FILES.flag), Birth(5, FS.flag)
    assert found == [[], [Birth(1, 0), Birth(2, FILES.flag), fs], [Birth(3, FILES.flag), Leave(FILES.flag), files]]
    assert Sharing(tree).birth_order(range(6)) == [0, 1, 2, 5, 3, 4]


def test_who_leads_a_session_itself_is_made_when_it_fits() -> None:
    tree = with_terminal(family([-1, 0, 0, 0, 0], files=[[1, 4], [2, 3]]), 3)
    tree[4] = replace(tree[4], session=tree[4].pid)
    one, other = ([Birth(at, FILES.flag) for at in some] for some in ((1, 4), (2, 3)))
    assert Sharing(tree).steps(0) == [[], [*one, Leave(FILES.flag), other[0]], [other[1], Leave(FILES.flag)]]


def test_what_the_order_of_terminals_forbids() -> None:
    tree = family([-1, 0, 0, 0, 0], files=[[1, 3], [2, 4]])
    assert not Sharing(tree).problems() and not Sharing(with_terminal(tree, 2, 4)).problems()
    (problem, *_) = Sharing(with_terminal(tree, 3, 4)).problems()
    assert "descriptor table (CLONE_FILES) with process" in problem.what and "no order of making them" in problem.what


def test_many_children_that_share() -> None:
    count = 2000
    tree = family([-1, *[0] * count], files=[range(count + 1)], fs=[range(1, count, 2)])
    has = carried_out(tree)
    assert has is not None and is_as_wanted(tree[:40], {kind: some[:40] for kind, some in has.items()})


def orders(tree: Sequence[Kin]) -> Iterator[list[int]]:
    """All in which the children of the first can be made."""
    yield from map(list, itertools.permutations(range(1, len(tree))))


def there_is_an_order(tree: Sequence[Kin], kinds: Sequence[Kind]) -> bool:
    """By trying all: between any two births the parent leaves what would be wrong for the next one."""
    for order in orders(tree):
        terminals = [tree[at].terminal for at in order if tree[at].session == tree[0].session]
        if tree[0].terminal >= 0 and terminals != sorted(terminals):
            continue
        for leaves in itertools.product(*[list(itertools.product((False, True), repeat=len(kinds)))] * len(tree)):
            has = {kind: {0: 0} for kind in kinds}
            fresh = itertools.count(1)
            for child, left in zip([*order, None], leaves, strict=True):
                for kind, goes in zip(kinds, left, strict=True):
                    if goes and kind.leaves:
                        has[kind][0] = next(fresh)
                    if child is not None:
                        passed = tree[child].shares.of(kind)
                        has[kind][child] = has[kind][0] if passed else next(fresh)
            every = {kind: [has[kind][at] for at in range(len(tree))] for kind in kinds}
            nothing = {kind: list(range(len(tree))) for kind in KINDS}
            if is_as_wanted(tree, {**nothing, **every}):
                return True
    return False


@pytest.mark.parametrize("seed", range(120))
def test_an_order_is_found_where_there_is_one(seed: int) -> None:
    draw = random.Random(seed)
    children = draw.randint(2, 3)
    kinds = draw.sample([FILES, FS, IO], 2)
    tree = family([-1, *[0] * children])
    for kind in kinds:
        labels = [draw.choice([0, 0, 1, 2]) for _ in tree]
        for at, label in enumerate(labels):
            some = [other for other, each in enumerate(labels) if each == label]
            if label and len(some) > 1:
                value = {kind.name: 10 + some[0]}
                tree[at] = replace(tree[at], shares=replace(tree[at].shares, **value))
    if seed % 2:
        tree = with_terminal(tree, *draw.sample(range(1, children + 1), draw.randint(0, children)))
        if seed % 4 == 1:
            tree[1] = replace(tree[1], session=tree[1].pid, terminal=-1)
    has = carried_out(tree)
    assert bool(Sharing(tree).problems()) == (has is None)
    assert (has is not None) == there_is_an_order(tree, kinds)
    if has is not None:
        assert is_as_wanted(tree, has)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_clone_and_unshare_can_make_is_made_again_or_refused(seed: int) -> None:
    """Histories of processes: what they have come to share is what their restorees share."""
    draw = random.Random(seed)
    fresh = itertools.count(1)
    parents, has = [-1], [{kind: next(fresh) for kind in KINDS}]
    for _ in range(draw.randint(1, 14)):
        who = draw.randrange(len(parents))
        if draw.random() < 0.3:
            kind = draw.choice([kind for kind in KINDS if kind.leaves])
            has[who] = {**has[who], kind: next(fresh)}
        else:
            flags = [kind for kind in KINDS if draw.random() < 0.4]
            parents.append(who)
            has.append({kind: has[who][kind] if kind in flags else next(fresh) for kind in KINDS})
    tree = family(parents)
    for kind in KINDS:
        for at, each in enumerate(has):
            some = [other for other, one in enumerate(has) if one[kind] == each[kind]]
            if len(some) > 1:
                shares = {**vars(tree[at].shares), kind.name: 10 + some[0]}
                tree[at] = replace(tree[at], shares=Shares(**shares))
    made = carried_out(tree)
    problems = Sharing(tree).problems()
    if not problems:
        assert made is not None and is_as_wanted(tree, made)

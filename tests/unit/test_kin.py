"""Sessions and process groups of a tree: which can be made again, and in which order."""

from __future__ import annotations

import pytest

from migrate.engine.descent import Descent
from migrate.engine.kin import Kin, Zombie
from migrate.engine.sharing import Sharing

OUTSIDE = 900000


def made(*rows: tuple[int, int, int, int]) -> list[Kin]:
    """Of (pid, position of the parent, group, session)."""
    return [Kin(pid, parent, 17, pgrp, session) for pid, parent, pgrp, session in rows]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (made((10, -1, OUTSIDE, OUTSIDE), (11, 0, OUTSIDE, OUTSIDE)), ""),
        (made((10, -1, 10, 10), (11, 0, 11, 11), (12, 1, 11, 11), (13, 1, 10, 10)), ""),
        (made((10, -1, 10, 10), (11, 0, 10, OUTSIDE)), ""),
        (made((10, -1, 10, 10), (11, 0, 10, 1)), "the leader of its session 1 is not among them"),
        (made((10, -1, 10, 10), (11, 0, 11, 11), (12, 0, 11, 11)), ""),
        (made((10, -1, 10, 10), (11, 0, 11, 11), (12, 0, 10, 10), (13, 2, 11, 11)),
         "it is in session 11, and its parent never was"),
        (made((10, -1, 10, 10), (11, 0, 10, 10), (12, 0, 12, 900001), (13, 1, 13, 900001)),
         "its session 900001 has no leader, and was left by others to another parent"),
        (made((10, -1, 10, 10), (11, 0, 1, 10)), "the leader of its process group 1 is not among them"),
    ],
)
def test_what_can_be_made_again(tree: list[Kin], words: str) -> None:
    assert {problem.what for problem in Descent(tree).problems()} == ({words} if words else set())


def test_a_child_that_stays_in_the_session_which_its_parent_leaves_is_made_first() -> None:
    tree = made((10, -1, 10, 10), (11, 0, 11, 11), (12, 1, 11, 11), (13, 1, 10, 10))
    assert Descent(tree).children(1) == ([3], [2])
    assert Sharing(tree).birth_order(range(4)) == [0, 1, 3, 2]


def test_who_was_adopted_is_made_by_a_stand_in() -> None:
    tree = made((10, -1, 10, 10), (11, 0, OUTSIDE, OUTSIDE), (12, 0, 14, 14), (13, 12 - 10, 14, 14), (14, 0, 14, 14))
    descent = Descent(tree)
    assert descent.sessions == {OUTSIDE: [1]} and descent.bereft(0) == [(OUTSIDE, [1])]
    assert descent.adopted_from(4) == [2] and descent.children(2) == ([], [3])
    assert Sharing(tree).birth_order(range(5)) == [0, 4, 1, 2, 3] and descent.numbers == {OUTSIDE}


def test_a_group_that_stays_behind_becomes_that_of_the_first() -> None:
    tree = made((10, -1, OUTSIDE, OUTSIDE), (11, 0, OUTSIDE, OUTSIDE), (12, 0, 12, OUTSIDE), (13, 0, 12, OUTSIDE))
    assert Descent(tree).groups == [10, 10, 12, 12] and not Descent(tree).ghosts


def test_a_group_whose_leader_is_gone_gets_one_for_a_moment() -> None:
    tree = made((10, -1, 10, 10), (11, 0, OUTSIDE, 10), (12, 0, OUTSIDE, 10))
    assert Descent(tree).ghosts == [(1, OUTSIDE)] and Descent(tree).numbers == {OUTSIDE}


@pytest.mark.parametrize(
    ("zombie", "words"),
    [
        (Zombie(12, 5 << 8, 10, 10, 17, "ended"), ""),
        (Zombie(12, 11 | 0x80, 10, 10, 17, "ended"), "it has ended with a core dump"),
        (Zombie(12, 0, 10, 10, 10, "ended"), "its parent gets signal 10 for it"),
        (Zombie(12, 0, 10, 7, 17, "ended"), "was in another session than its parent"),
    ],
)
def test_zombies(zombie: Zombie, words: str) -> None:
    tree = [Kin(10, -1, 17, 10, 10, (zombie,))]
    said = "".join(problem.what for problem in Descent(tree).problems())
    assert words in said and bool(said) == bool(words)


def test_who_has_no_controlling_terminal_is_made_before_its_parent_has_one() -> None:
    tree = [
        Kin(10, -1, 17, 10, 10),
        Kin(11, 0, 17, 11, 11, terminal=3, foreground=13),
        Kin(12, 1, 17, 12, 11),
        Kin(13, 1, 17, 13, 11, terminal=3, foreground=13),
    ]
    descent = Descent(tree)
    assert not descent.problems() and not descent.ghosts
    assert [descent.holds(position) for position in range(4)] == [False, True, False, False]
    assert descent.times(1) == {2: range(1, 2), 3: range(2, 3)} and descent.times(0) == {1: range(3)}
    assert not tree[1].single and tree[0].single


def test_a_foreground_that_has_ended_gets_a_leader_for_a_moment() -> None:
    tree = [Kin(10, -1, 17, 10, 10), Kin(11, 0, 17, 11, 11, terminal=3, foreground=OUTSIDE)]
    assert Descent(tree).ghosts == [(1, OUTSIDE)]


def test_a_terminal_without_the_leader_of_its_session() -> None:
    tree = [Kin(10, -1, 17, 10, OUTSIDE, terminal=0, foreground=10)]
    (problem,) = Descent(tree).problems()
    assert problem.what == "its controlling terminal /dev/pts/0 moves, and the leader of its session does not"


def test_who_has_no_controlling_terminal_though_its_parent_was_born_with_it() -> None:
    """Nobody who does not lead its session gets one, or is without it, by who makes it."""
    tree = [Kin(10, -1, 17, 10, 10, terminal=3), Kin(11, 0, 17, 10, 10, terminal=3), Kin(12, 1, 17, 10, 10)]
    (problem,) = Descent(tree).problems()
    assert problem.where == "pid 12" and problem.what.startswith("its controlling terminal is none, and no order")
    tree[1:] = [Kin(11, 0, 17, 10, 10), Kin(12, 1, 17, 10, 10, terminal=3)]
    (problem,) = Descent(tree).problems()
    assert problem.where == "pid 12" and "its controlling terminal is /dev/pts/3, and" in problem.what


def test_a_leader_that_was_born_with_the_terminal_of_its_children() -> None:
    """One that leads a session of its own by now, and has made another one before that."""
    below = [Kin(11, 0, 17, 11, 11), Kin(12, 1, 17, 10, 10, terminal=3)]
    tree = [Kin(10, -1, 17, 10, 10, terminal=3), *below]
    assert not Descent(tree).problems()
    assert Descent(tree).times(0) == {1: range(2, 3)} and Descent(tree).times(1) == {2: range(1)}
    tree[2] = Kin(12, 1, 17, 10, 10)
    assert not Descent(tree).problems() and Descent(tree).times(0) == {1: range(1, 2)}

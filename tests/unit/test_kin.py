"""Sessions and process groups of a tree: which can be made again, and in which order."""

from __future__ import annotations

import pytest

from migrate.engine import kin, lineage
from migrate.engine.kin import Kin, Zombie

OUTSIDE = 900000


def made(*rows: tuple[int, int, int, int]) -> list[Kin]:
    """Of (pid, position of the parent, group, session)."""
    return [Kin(pid, parent, 17, pgrp, session) for pid, parent, pgrp, session in rows]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (made((10, -1, OUTSIDE, OUTSIDE), (11, 0, OUTSIDE, OUTSIDE)), ""),
        (made((10, -1, 10, 10), (11, 0, 11, 11), (12, 1, 11, 11), (13, 1, 10, 10)), ""),
        (made((10, -1, 10, 10), (11, 0, 10, OUTSIDE)), "the leader of its session 900000 is not among them"),
        (made((10, -1, 10, 10), (11, 0, 11, 11), (12, 0, 11, 11)), "it is in session 11, and its parent never was"),
        (made((10, -1, 10, 10), (11, 0, 1, 10)), "the leader of its process group 1 is not among them"),
    ],
)
def test_what_can_be_made_again(tree: list[Kin], words: str) -> None:
    assert "".join(problem.what for problem in kin.standing(tree)) == words


def test_a_child_that_stays_in_the_session_which_its_parent_leaves_is_made_first() -> None:
    tree = made((10, -1, 10, 10), (11, 0, 11, 11), (12, 1, 11, 11), (13, 1, 10, 10))
    assert [kin.before_setsid(tree, position) for position in (2, 3)] == [False, True]
    assert lineage.birth_order(tree) == [0, 1, 3, 2]


def test_a_group_that_stays_behind_becomes_that_of_the_first() -> None:
    tree = made((10, -1, OUTSIDE, OUTSIDE), (11, 0, OUTSIDE, OUTSIDE), (12, 0, 12, OUTSIDE), (13, 0, 12, OUTSIDE))
    assert kin.groups(tree) == [10, 10, 12, 12] and not kin.ghosts(tree)


def test_a_group_whose_leader_is_gone_gets_one_for_a_moment() -> None:
    tree = made((10, -1, 10, 10), (11, 0, OUTSIDE, 10), (12, 0, OUTSIDE, 10))
    assert kin.ghosts(tree) == [(1, OUTSIDE)] and kin.numbers(tree) == {OUTSIDE}


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
    said = "".join(problem.what for problem in kin.standing(tree))
    assert words in said and bool(said) == bool(words)

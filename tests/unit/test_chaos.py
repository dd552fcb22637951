"""What `make chaos` goes by: plans that can be drawn again, and checks that notice what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents import settling
from agents.journal import DESTINATION, SOURCE
from tests.chaos.plan import POINTS, WEIGHTS, draw
from tests.chaos.table import Tally
from tests.chaos.trip import Broken
from tests.chaos.verdict import Counted, truthful

MANY = 3000


def test_plans_are_drawn_again() -> None:
    assert draw("7/0/1") == draw("7/0/1") != draw("7/0/2")


def test_every_disaster_comes_at_every_point() -> None:
    plans = [draw(f"x/0/{number}") for number in range(MANY)]
    blows = [blow for plan in plans for blow in plan.blows]
    assert {blow.kind for blow in blows} == set(WEIGHTS)
    assert {blow.point for blow in blows} == {"", *POINTS}
    assert {len(plan.blows) for plan in plans} == {0, 1, 2}
    few = ("overseer", "no memory")
    assert {blow.kind for number in range(100) for blow in draw(f"x/0/{number}", few).blows} == set(few)


def test_plans_say_what_they_are() -> None:
    assert str(draw("x/0/0")).startswith("x/0/0: ")


@pytest.mark.parametrize("wrong", ["4 9", "2 9", "3 7", "3", "three 9", ""])
def test_a_line_too_few_or_too_many(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "count"
    file.write_text("0 6\n1 7\n2 8\n3")  # the last one is being written
    counted = Counted(file)
    counted.read()
    assert (counted.lines, counted.rounds) == (3, 8)
    file.write_text(f"0 6\n1 7\n2 8\n{wrong}\n")
    with pytest.raises(Broken, match="after 3 lines"):
        counted.read()


@pytest.mark.parametrize(
    ("outcomes", "moved", "true"),
    [
        ((settling.MOVED,), True, True),
        ((settling.ROLLED_BACK, settling.MOVED), True, True),
        ((settling.MOVED, settling.MOVED), True, False),
        ((settling.ROLLED_BACK,), True, False),
        ((settling.IN_DOUBT,), True, False),
        ((), True, False),
        ((), False, True),
        ((settling.ROLLED_BACK, settling.ROLLED_BACK), False, True),
        ((settling.MOVED,), False, False),
        ((settling.UNDER_WAY,), False, False),
    ],
)
def test_journals_that_lie(outcomes: tuple[str, ...], moved: bool, true: bool) -> None:
    told: list[dict[str, object]] = [{"role": SOURCE, "outcome": outcome} for outcome in outcomes]
    told.append({"role": DESTINATION, "outcome": settling.UNDER_WAY})
    assert (truthful(told, SOURCE, moved) == "") is true


def test_the_table() -> None:
    tally = Tally()
    tally.add(["overseer", "sshd"], "moved")
    tally.add([], "moved")
    tally.add(["sshd"], "BROKEN")
    assert (tally.total, tally.hit, tally.broken) == (3, 2, 1)
    assert tally.progress() == "2 moves hit, 2 moved, 1 BROKEN"
    assert [line.split() for line in tally.lines()] == [
        ["fault", "times", "moved", "rolled", "back", "BROKEN"],
        ["overseer", "1", "1", "0", "0"],
        ["sshd", "2", "1", "0", "1"],
        ["(missed,", "or", "none)", "1", "1", "0", "0"],
        ["moves", "3", "2", "0", "1"],
    ]

"""Files of processes that come and go are looked at again before they are a reason against a move."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from migrate import following, preflight
from migrate.errors import Problem, Refused
from migrate.preparation import Preparation


@dataclass
class Told:
    """Originals, destination and display in one. ``files``: what is wrong with them at each look."""

    files: list[list[Problem]]
    ids: list[int] = field(default_factory=lambda: [0, 1])
    memory: int = 0
    looks: int = 0

    @property
    def previews(self) -> list[Any]:
        return [SimpleNamespace(problems=(), needs=(), resident=0) for _ in self.ids]

    async def inspect(self) -> None:
        self.looks += 1

    async def facts(self) -> Any:
        return SimpleNamespace(one_machine=True)

    async def name(self) -> None:
        pass

    def phase(self, name: str) -> None:
        pass

    source = property(lambda self: self)
    cgroup = no_clock = None
    one_machine = True


async def looked(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    async def file_problems(*arguments: object) -> tuple[list[Problem], frozenset[str]]:
        return told.files[told.looks - 1], frozenset()

    for name in ("host_problems", "process_problems"):
        monkeypatch.setattr(preflight, name, lambda *arguments: [])
    monkeypatch.setattr(preflight, "file_problems", file_problems)
    all_in_one = cast(Any, told)
    await Preparation(all_in_one, all_in_one, all_in_one, all_in_one, False).preflight()


def missing(name: str) -> list[Problem]:
    return [Problem("pid 812 fd 3", f"{name} is not on the destination")]


def test_another_one_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told([missing("a.s"), missing("b.s"), []])
    trio.run(looked, told, monkeypatch)
    assert told.looks == 3


def test_one_that_stays_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told([missing("a.s"), [*missing("b.s"), *missing("data")], [*missing("c.s"), *missing("data")]])
    with pytest.raises(Refused) as refusal:
        trio.run(looked, told, monkeypatch)
    assert told.looks == 3 and "data" in str(refusal.value)


def test_they_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told([missing(f"{number}.s") for number in range(100)])
    with pytest.raises(Refused):
        trio.run(looked, told, monkeypatch)
    assert told.looks < 10


def test_of_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has them open for as long as it says so."""
    told = Told([missing("data")], ids=[0])
    with pytest.raises(Refused, match="data"):
        trio.run(looked, told, monkeypatch)
    assert told.looks == 1


@pytest.mark.parametrize("needed", [["there"], ["there", "data"]])
def test_one_that_was_met_on_the_way(needed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what it needs when it stands still."""

    async def file_problems(needs: list[str], *where: object) -> tuple[list[Problem], frozenset[str]]:
        return [problem for name in needs if name != "there" for problem in missing(name)], frozenset()

    monkeypatch.setattr(preflight, "file_problems", file_problems)
    monkeypatch.setattr(following, "needs_of", lambda preview, image: image)
    one = cast(Any, Told([]))
    subject = following.Following(one, one, one, one, one, one, one, one, room=10)
    images = cast(Any, [["not asked for"], needed])
    trio.run(subject.check, images)
    subject._lacking.add(1)
    if "data" in needed:
        with pytest.raises(Refused, match="data is not on the destination"):
            trio.run(subject.check, images)
    else:
        trio.run(subject.check, images)

"""How the digests of both sides are compared (migrate/verify.py), with agents that are only played."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from migrate.engine.kinds.vma import FILE, SHMEM, VMA, Backing
from migrate.errors import Failed
from migrate.transport.agent import Agent, Nonsense, Reply
from migrate.verify import Side, compare

PAGE = 4096
MEMORY = VMA(0x10000, 0x20000, 3, False, None, 0, "[heap]", "rd wr mr mw me ac")
HIDDEN = VMA(0x20000, 0x30000, 0, False, None, 0, "", "mr mw me ac")
FILED = VMA(0x30000, 0x40000, 3, False, Backing(FILE, 1, 2, "/lib/x", 1 << 20, 1), 0, "", "rd wr mr mw me ac")
SHARED = VMA(0x40000, 0x50000, 3, True, Backing(SHMEM, 3, 4, "/dev/zero", 1 << 16, 1), 0, "", "rd wr sh mr mw me ms")
LAYOUT = (MEMORY, HIDDEN, FILED, SHARED)


@dataclass
class Played:
    """``own``: digests of what it has; ``file``: what it shows where it has nothing of its own."""

    own: dict[int, int]
    file: dict[int, int] = field(default_factory=dict)
    unread: list[tuple[int, int]] = field(default_factory=list)
    step: int = 1 << 40  # bytes of address space in one answer
    name: str = "the one that is played"
    asked: list[Any] = field(default_factory=list)

    async def request(self, verb: str, pid: int, areas: Any, masks: Any) -> Reply:
        await trio.lowlevel.checkpoint()
        self.asked.append((areas, masks))
        limit, records = areas[0][0] + self.step, []
        for start, end, kind, _ in areas:
            for page in range(start, min(end, limit), PAGE):
                shown = self.own.get(page, self.file.get(page, 0) if kind == 3 else None)
                if shown is not None:
                    records.append(struct.pack("<QQ", page, shown))
        following = limit if limit < areas[-1][1] else None
        unread, self.unread = self.unread, []
        return Reply({"next": following, "unread": unread}, b"".join(records))


def compared(here: Played, there: Played, layout: tuple[VMA, ...] = LAYOUT, rseq: Any = None) -> tuple[int, int]:
    image: Any = SimpleNamespace(vmas=layout, threads=[SimpleNamespace(state=SimpleNamespace(rseq=rseq))])
    source, destination = (Side(cast(Agent, each), 1) for each in (here, there))
    return trio.run(compare, source, destination, image, "on node2")


SAME = {0x10000: 1, 0x11000: 2, 0x31000: 3, 0x42000: 4}


def test_the_same() -> None:
    assert compared(Played(SAME), Played(SAME)) == (4, 0)
    # in however many answers, and however different those of the two are
    assert compared(Played(SAME, step=2 * PAGE), Played(SAME, step=7 * PAGE)) == (4, 0)


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        ({**SAME, 0x11000: 7}, SAME, r"page 0x11000 of 10000-20000 rw-p \[heap\] differs"),
        (SAME, {**SAME, 0x12000: 7}, r"page 0x12000 of 10000-20000 rw-p \[heap\] is empty here"),
        ({**SAME, 0x43000: 7}, SAME, "page 0x43000 of 40000-50000 rw-s /dev/zero is missing there"),
        ({**SAME, 0x31000: 7}, SAME, "page 0x31000 of 30000-40000 rw-p /lib/x differs"),
        ({**SAME, 0x21000: 7}, SAME, "page 0x21000 of 20000-30000 ---p is missing there"),
        ({}, SAME, r"page 0x10000 .*; page 0x11000 .*; page 0x31000 .*, and 1 more"),
    ],
)
def test_what_differs_is_named(here: dict[int, int], there: dict[int, int], says: str) -> None:
    with pytest.raises(Failed, match=f"memory on node2 is not what it is here: {says}"):
        compared(Played(here), Played(there))


def test_a_page_of_a_file_that_only_one_side_has_as_its_own() -> None:
    """What counts is what it shows."""
    for here, there in (({**SAME, 0x33000: 8}, SAME), (SAME, {**SAME, 0x33000: 8})):
        assert compared(Played(here, {0x33000: 8}), Played(there, {0x33000: 8}))[1] == 0
        with pytest.raises(Failed, match="page 0x33000 of 30000-40000 rw-p /lib/x differs"):
            compared(Played(here, {0x33000: 9}), Played(there, {0x33000: 9}))


def test_what_the_kernel_there_shows_to_nobody() -> None:
    """Only where the process cannot read it either is that no difference; and it is counted."""
    hidden = {**SAME, 0x22000: 5, 0x23000: 6}
    assert compared(Played(hidden), Played(SAME, unread=[(0x22000, 2)])) == (6, 2)
    with pytest.raises(Failed, match="page 0x23000 of 20000-30000 ---p is missing there"):
        compared(Played(hidden), Played(SAME, unread=[(0x22000, 1)]))
    with pytest.raises(Failed, match="page 0x11000 .* is missing there"):
        compared(Played(SAME), Played({k: v for k, v in SAME.items() if k != 0x11000}, unread=[(0x11000, 1)]))


def test_what_the_kernel_writes_is_masked() -> None:
    """CPU, node and critical section of a thread; its flags are the process's own."""
    here = Played(SAME)
    compared(here, Played(SAME), rseq=SimpleNamespace(address=0x10100, size=32, signature=1))
    assert here.asked[0][1] == [(0x10100, 16), (0x10114, 12)]


def test_many_areas_go_in_several_requests() -> None:
    starts = range(1 << 20, (1 << 20) + 10000 * PAGE * 2, PAGE * 2)
    layout = tuple(VMA(start, start + PAGE, 3, False, None, 0, "", "rd wr") for start in starts)
    pages = {vma.start: vma.start for vma in layout}
    here = Played(pages)
    assert compared(here, Played(pages), layout) == (10000, 0)
    assert [len(areas) for areas, _ in here.asked] == [4096, 4096, 1808]


@pytest.mark.parametrize(
    "reply", [{"next": 0, "unread": []}, {"next": None, "unread": [1]}, {"next": "x", "unread": []}]
)
def test_an_answer_that_cannot_be(reply: dict[str, Any]) -> None:
    class Odd(Played):
        async def request(self, verb: str, pid: int, areas: Any, masks: Any) -> Reply:
            await trio.lowlevel.checkpoint()
            return Reply(reply, b"")

    with pytest.raises(Nonsense, match="what it tells of pages makes no sense|'next' of the answer"):
        compared(Played(SAME), Odd(SAME))

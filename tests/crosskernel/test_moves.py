"""Every kernel to every other: a victim that calls the vDSO, waits for clocks, computes, writes and grows."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crosskernel.guests import HOST
from tests.crosskernel.kernels import SUITES
from tests.crosskernel.travels import Travel, Travels
from tests.tasks import wait_until
from tests.victims import IA32

ENDPOINTS = (HOST, *SUITES)
WAY = (HOST, "6.1", "5.10", "7.2", HOST)
"""What `make test` goes, with one process; `make test-kernels` goes every way, with a process for each as well."""

MOVES = int(os.environ.get("VDSO_MOVES", "6"))
"""More of them show what is rare: `VDSO_MOVES=200`."""


def must_go_on(travel: Travel) -> None:
    """AssertionError unless it writes on to its log."""
    log = travel.directory / "log"
    size = log.stat().st_size
    wait_until(f"{travel.name} to go on at {travel.at}", lambda: log.stat().st_size > size + 200, 120)


def all_but_its_data(travel: Travel) -> list[str]:
    """Its mappings but for what a heap grows by; what a move had left, code or the kernel's own, would be seen."""
    words = [line.split() for line in travel.maps]
    return [" ".join(each) for each in words if each[1] != "rw-p" or each[3:] not in ([], ["[heap]"])]


@pytest.mark.timeout(1500)
def test_there_and_back(travels: Travels) -> None:
    """Over kernels that all differ, and home, where all is as before."""
    travels.world.need(*WAY)
    travel = travels.start("traveller", HOST)
    before = all_but_its_data(travel)
    for dest in WAY[1:]:
        assert travel.move(dest)["vdso"] == ("remap" if dest == HOST else "proxy")
        must_go_on(travel)
    assert all_but_its_data(travel) == before
    travel.tell()
    travel.verdict()


Way = tuple[str, str]


def rounds(names: tuple[str, ...]) -> list[tuple[Way, ...]]:
    """Every way between two of an odd number of names, in rounds in which each has to do with one other at most (the
    circle method of tournaments)."""
    count = len(names)
    found = []
    for first in range(count):
        pairs = [(names[(first + i) % count], names[(first - i) % count]) for i in range(1, count // 2 + 1)]
        found += [tuple(pairs), tuple((there, here) for here, there in pairs)]
    return found


def test_the_rounds_go_every_way_once() -> None:
    assert sorted(itertools.chain(*rounds(ENDPOINTS))) == sorted(itertools.permutations(ENDPOINTS, 2))
    assert all(len({*itertools.chain(*ways)}) == 2 * len(ways) for ways in rounds(ENDPOINTS))


@pytest.mark.every_kernel
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("ways", [
    pytest.param(ways, id="_".join("-to-".join(way) for way in ways)) for ways in rounds(ENDPOINTS)
])
def test_moves(travels: Travels, ways: tuple[Way, ...]) -> None:
    """Every way, with a process of its own; as many at once as two cores are good for."""
    travels.world.need(*itertools.chain(*ways))
    travels.ship("traveller")
    with ThreadPoolExecutor(len(ways)) as pool:
        for each in [pool.submit(_a_move, travels, *way) for way in ways]:
            each.result()


def _a_move(travels: Travels, source: str, dest: str) -> None:
    travel = travels.start("traveller", source)
    report = travel.move(dest)
    assert report["vdso"] == "proxy"
    must_go_on(travel)
    travel.tell()
    travel.verdict()


def circuit(names: tuple[str, ...]) -> list[str]:
    """A round trip that goes every way between any two of them once (Hierholzer's algorithm), from the first."""
    left = {name: [other for other in names if other != name] for name in names}
    trail, done = [names[0]], list[str]()
    while trail:
        if left[trail[-1]]:
            trail.append(left[trail[-1]].pop())
        else:
            done.append(trail.pop())
    return done[::-1]


def test_the_circuit_goes_every_way_once() -> None:
    assert sorted(itertools.pairwise(circuit(ENDPOINTS))) == sorted(itertools.permutations(ENDPOINTS, 2))


@pytest.mark.every_kernel
@pytest.mark.timeout(1500)
def test_one_process_goes_every_way(travels: Travels) -> None:
    """After twenty moves it is where it began, and its mappings are those of the beginning."""
    way = circuit(ENDPOINTS)
    travels.world.need(*way)
    travel = travels.start("traveller", way[0], "0")
    before = travel.maps
    for dest in way[1:]:
        travel.move(dest)
        must_go_on(travel)
    assert travel.at == way[0]
    assert travel.maps == before
    travel.tell()
    travel.verdict()


@pytest.mark.every_kernel
@pytest.mark.timeout(300 + 60 * MOVES)
def test_back_and_forth_with_everybody_inside(travels: Travels) -> None:
    """Eight threads that do nothing but call the vDSO, and handlers that interrupt them and do so too: nobody crashes,
    no time goes backwards, and nothing piles up. (Between two hosts of one kernel: tests/migration/test_vdso.py.)"""
    guest = ENDPOINTS[-1]
    travels.world.need(guest)
    travel = travels.start("insider", HOST, "8", "20000")
    seen = [travel.maps]
    for number in range(MOVES):
        dest, decision = ((guest, "proxy"), (HOST, "remap"))[number % 2]
        assert travel.move(dest)["vdso"] == decision
        seen.append(travel.maps)
        assert seen[-1] == seen[(number + 1) % 2], f"move {number}"
    travel.tell()
    said = travel.verdict()
    assert " 0 handled" not in said, said


@pytest.mark.every_kernel
@pytest.mark.timeout(1500)
def test_a_program_of_32_bits(travels: Travels) -> None:
    travels.world.need(*WAY, "6.12")
    travel = travels.start("clocks", HOST, "2", flags=IA32)
    for dest in (*WAY[1:-1], "6.12", HOST):
        travel.move(dest)
    travel.tell()
    travel.verdict()

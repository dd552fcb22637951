"""Every kernel to every other: a victim that calls the vDSO, waits for clocks, computes, writes and grows."""

from __future__ import annotations

import itertools

import pytest

from tests.crosskernel.guests import HOST
from tests.crosskernel.kernels import SUITES
from tests.crosskernel.travels import Travel, Travels
from tests.tasks import wait_until

ENDPOINTS = (HOST, *SUITES)
EVERY_TIME = [(HOST, "6.1"), ("6.1", "5.10"), ("5.10", "7.2"), ("7.2", HOST)]
"""The pairs that `make test` moves between; `make test-kernels` has all of them."""
PAIRS = [
    pytest.param(*pair, id="-to-".join(pair), marks=() if pair in EVERY_TIME else pytest.mark.every_kernel)
    for pair in itertools.permutations(ENDPOINTS, 2)
]


def must_go_on(travel: Travel) -> None:
    """AssertionError unless it writes on to its log."""
    log = travel.directory / "log"
    size = log.stat().st_size
    wait_until(f"{travel.name} to go on at {travel.at}", lambda: log.stat().st_size > size + 200, 60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("source", "dest"), PAIRS)
def test_a_move(travels: Travels, source: str, dest: str) -> None:
    travels.world.need(source, dest)
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

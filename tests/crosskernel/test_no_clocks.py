"""A machine that gives nobody another time namespace: refused before anything is touched; or the clocks jump."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crosskernel.guests import HOST, ORDERS
from tests.crosskernel.nodes import Node
from tests.crosskernel.travels import Travels
from tests.tasks import wait_until

THERE = "6.1"
LIMIT = "/proc/sys/user/max_time_namespaces"


@pytest.fixture
def without(travels: Travels) -> Iterator[Node]:
    """A guest that gives no time namespaces, as long as the test runs; nothing of that kind can be told from outside
    (namespaces(7))."""
    travels.world.need(THERE)
    node = travels.world[THERE]
    before = node.read(LIMIT)
    _write(node, "0")
    yield node
    _write(node, before)


def _write(node: Node, value: str) -> None:
    (node.directory / ORDERS).write_text(f"echo {value.strip()} > {LIMIT}\n")
    node.run(["kill", "-USR1", "1"])
    wait_until(f"{LIMIT} to be {value}", lambda: node.read(LIMIT).strip() == value.strip(), 60)


@pytest.mark.every_kernel
@pytest.mark.timeout(600)
def test_no_time_namespaces(travels: Travels, without: Node) -> None:
    travel = travels.start("numbered", HOST)
    with pytest.raises(AssertionError, match="exit 3"):
        travel.move(THERE)
    error = travel.reports[-1]["error"]
    assert "gives the process no time namespace (unshare: No space left on device)" in error
    assert "max_time_namespaces" in error and "--no-clock" in error and "nothing was changed" in travel.said
    assert travel.node.alive(travel.pid)
    namespace = without.run(["readlink", "/proc/self/ns/time"]).stdout
    travel.move(THERE, "--no-clock")
    assert "CLOCK_MONOTONIC of the process jumps by " in travel.said
    assert without.run(["readlink", f"/proc/{travel.pid}/ns/time"]).stdout == namespace
    travel.tell()
    travel.verdict()

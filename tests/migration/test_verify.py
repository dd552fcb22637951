"""``--verify``: a page that arrives damaged is found before the commit, and named, whatever kind of memory it is of."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.faults import VARIABLE
from tests import moves
from tests.hosts import Pair
from tests.migration.scene import MOVING, Stage
from tests.tasks import Task, wait_until

KINDS = {"private": "rw-p", "shared": "rw-s", "memfd": "rw-s of-test", "file": "rw-p .*/mapped"}
VICTIM = """
import ctypes, mmap, os, sys, time
SIZE = 1 << 20
descriptor = os.open(sys.argv[1], os.O_RDONLY)
memory = os.memfd_create("of-test")
os.ftruncate(memory, SIZE)
maps = {
    "private": mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "shared": mmap.mmap(-1, SIZE),
    "memfd": mmap.mmap(memory, SIZE),
    "file": mmap.mmap(descriptor, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
}
for made in maps.values():
    made[3 * 4096:3 * 4096 + 5] = b"hello"
print({name: ctypes.addressof(ctypes.c_char.from_buffer(made)) + 3 * 4096 for name, made in maps.items()}, flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def victim(two_hosts: Pair) -> Iterator[tuple[Task, dict[str, int]]]:
    """A process on node1, and where the fourth page of each kind of its memory is."""
    mapped, out = two_hosts.directory / "mapped", two_hosts.directory / "addresses"
    mapped.write_bytes(bytes(range(256)) * 4096)
    task = two_hosts.a.spawn([sys.executable, "-c", VICTIM, str(mapped)], stdout=out)
    wait_until("the victim", lambda: "}" in out.read_text())
    yield task, eval(out.read_text())
    mapped.unlink()


def page(task: Task, address: int) -> bytes:
    with Path(f"/proc/{task.outer}/mem").open("rb") as memory:
        memory.seek(address)
        return memory.read(4096)


def test_damaged_pages_are_named(two_hosts: Pair, victim: tuple[Task, dict[str, int]]) -> None:
    task, addresses = victim
    before = {name: page(task, address) for name, address in addresses.items()}
    there = two_hosts.b.pids()
    for name, label in KINDS.items():
        fault = {VARIABLE: f"page:flip={addresses[name]:x}"}
        started = moves.start(
            two_hosts.a, task.pid, two_hosts.b.destination, "--verify", "--compress", "none", env=fault
        )
        outcome = moves.finish(started)
        assert outcome.code == 5, (name, outcome)
        found = rf"page {addresses[name]:#x} of [0-9a-f]+-[0-9a-f]+ {label}.* differs$"
        assert re.search(found, outcome.report["error"]), (name, outcome.report["error"])
        assert task.alive
        wait_until("the destination clean", lambda: two_hosts.b.pids() == there, 20)
    assert {name: page(task, address) for name, address in addresses.items()} == before


def test_without_it_nobody_notices(two_hosts: Pair, victim: tuple[Task, dict[str, int]]) -> None:
    """The damage is real: the test above does not pass because nothing was damaged."""
    task, addresses = victim
    for_sure = page(task, addresses["private"])
    fault = {VARIABLE: f"page:flip={addresses['private']:x}"}
    moved, _ = moves.move(two_hosts, task, "--compress", "none", env=fault, verify=False)
    damaged = page(moved, addresses["private"])
    assert damaged[:2048] == for_sure[:2048] and damaged[2048] == for_sure[2048] ^ 1


def test_what_is_whole_passes(two_hosts: Pair, victim: tuple[Task, dict[str, int]]) -> None:
    task, addresses = victim
    before = {name: page(task, address) for name, address in addresses.items()}
    moved, outcome = moves.move(two_hosts, task, "-v")
    count = re.search(r"verified ([\d,]+) pages", outcome.err)
    assert count and int(count[1].replace(",", "")) > 500, outcome.err
    assert outcome.report["phases_ms"]["verify"] > 0
    assert {name: page(moved, address) for name, address in addresses.items()} == before


def test_a_busy_process_notices_nothing(stage: Stage) -> None:
    """Called off after the verification; then with it, all the way."""
    result = stage.launcher.start("--verify", *stage.command, fault="before-commit:fail").wait()
    assert result.code == 5 and result.report["error"] == "injected at before-commit", result
    stage.untouched()
    stage.journey.move("--verify", ignore=MOVING)

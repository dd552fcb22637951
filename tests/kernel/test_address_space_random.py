"""A process that maps, unmaps, protects, moves and writes at random, followed by another one: both must look alike.

The source is a restorer too, since that does whatever system calls one likes.
"""

from __future__ import annotations

import random

import pytest

from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import address_space as space
from migrate.engine.kinds.vma import VMA
from migrate.engine.kinds.vma_read import AddressSpaceReader
from migrate.engine.program import OpKind, Program
from tests.kernel.moving import pagemap, seen
from tests.kernel.restoree import Restoree

BASE = 0x200000000000
PAGES = 48
COVERED = [(BASE, BASE + PAGES * 4096)]
FIXED = 0x2 | 0x20 | 0x10  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
ADVICE = (1, 2, 10, 14, 15, 16)
EVERY_ERROR = {"ignore": True}  # ENOMEM over a hole, and so on: whatever the kernel did, it did


def live(program: Program, rng: random.Random, steps: int) -> None:
    """A while in the life of a process."""

    def stretch() -> tuple[int, int]:
        size = rng.randint(1, 8)
        return BASE + rng.randint(0, PAGES - size) * 4096, size * 4096

    for _ in range(steps):
        at, size = stretch()
        what = rng.choices(("map", "unmap", "protect", "advise", "write", "move"), (6, 3, 4, 1, 8, 1))[0]
        if what == "map":
            flags = FIXED | rng.choice((0, 0, 0, 0x4000))
            program.syscall("mmap", at, size, rng.choice((3, 3, 3, 1, 0)), flags, -1, 0, label="map")
        elif what == "unmap":
            program.syscall("munmap", at, size, label="unmap")
        elif what == "protect":
            program.syscall("mprotect", at, size, rng.choice((3, 3, 1, 0)), label="protect", ignore=True)
        elif what == "advise":
            program.syscall("madvise", at, size, rng.choice(ADVICE), label="advise", ignore=True)
        elif what == "write":
            # getcwd(2) writes where it can, and says EFAULT where it cannot
            program.syscall("getcwd", at, 4096, label="write", ignore=True)
        else:
            to, _ = stretch()
            program.syscall("mremap", at, size, size, 3, to, label="move", ignore=True)
    program.op(OpKind.END, label="for now")


class Source:
    def __init__(self, restoree: Restoree) -> None:
        self.restoree, self.proc = restoree, Proc(restoree.pid)
        self.reader = AddressSpaceReader(self.proc)

    def read(self) -> list[VMA]:
        return [vma for vma in self.reader.read() if BASE <= vma.start < COVERED[0][1]]


def lines(restoree: Restoree) -> list[str]:
    return [line for line in seen(restoree.pid, restoree) if BASE <= int(line.split("-")[0], 16) < COVERED[0][1]]


def send(source: Restoree, there: Restoree, vmas: list[VMA], void: list[tuple[int, int]]) -> None:
    """Pages that differ, as a tracker would find them; those that are void must be empty there."""
    for start, end in void:
        assert there.peek(start, end - start) == bytes(end - start)
    for vma in vmas:
        for index, entry in enumerate(pagemap(source.pid, vma)):
            at = vma.start + index * 4096
            here = source.peek(at, 4096)
            if here != there.peek(at, 4096):
                assert here is not None
                if entry >> 63:
                    there.place(at, here)
                else:
                    there.drop(at)


@pytest.mark.parametrize("seed", range(60))
def test_follows(seed: int) -> None:
    rng = random.Random(seed)
    with Restoree(COVERED) as restoree, Restoree(COVERED) as there:
        source = Source(restoree)
        program = Program("its life so far")
        live(program, rng, 60)
        restoree.run(program)
        vmas = source.read()
        program = Program("map")
        space.compile_clear(program, there.vdso, there.hole)
        space.compile_map(program, vmas, there.hole)
        there.run(program)
        send(restoree, there, vmas, [])
        for _ in range(4):
            program = Program("its life since")
            live(program, rng, rng.choice((2, 5, 30)))
            restoree.run(program)
            old, vmas = vmas, source.read()
            program = Program("difference")
            void = space.compile_difference(program, old, vmas, there.hole)
            there.run(program)
            send(restoree, there, vmas, void)
        program = Program("finish")
        space.compile_finish(program, vmas)
        there.run(program)
        source.proc.close()
        assert lines(there) == lines(restoree)
        for vma in vmas:
            assert there.peek(vma.start, vma.size) == restoree.peek(vma.start, vma.size)

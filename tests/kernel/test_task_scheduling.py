"""Policies, nice, CPUs, I/O priority, timer slack and memory policy."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine.kernel import prctl as pr
from migrate.engine.kinds.scheduling import Scheduling, cpu_mask
from migrate.engine.program import Buffer, Program
from tests.kernel.actors import Actor, collect, destination, host, seen, syscall


def setattr_(policy: int, flags: int = 0, nice: int = 0, priority: int = 0, *times: int) -> None:
    runtime, deadline, period = times or (0, 0, 0)
    attr = struct.pack("<IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    syscall("sched_setattr", 0, attr, 0)


def plain() -> None:
    """As it is."""


def nice() -> None:
    setattr_(0, nice=7)


def negative_nice() -> None:
    setattr_(0, nice=-11)


def batch() -> None:
    setattr_(3, nice=3)


def idle() -> None:
    # With the nice value that it has: the kernel would keep that, but show the priority of the other one.
    setattr_(5, nice=os.getpriority(os.PRIO_PROCESS, 0))


def fifo_that_was_nice() -> None:
    syscall("setpriority", 0, 0, 5)
    setattr_(1, priority=17)


def round_robin_reset_on_fork() -> None:
    setattr_(2, flags=1, priority=1)


def deadline() -> None:
    setattr_(6, 0, 0, 0, 1_000_000, 50_000_000, 100_000_000)


def own_slice() -> None:
    setattr_(0, 0, 0, 0, 700_000, 0, 0)


def one_cpu() -> None:
    syscall("sched_setaffinity", 0, 8, struct.pack("<Q", 2))


def io_class() -> None:
    syscall("ioprio_set", 1, 0, 2 << 13 | 6)


def io_idle() -> None:
    syscall("ioprio_set", 1, 0, 3 << 13)


def slack() -> None:
    syscall("prctl", pr.PR_SET_TIMERSLACK, 123_456, 0, 0, 0)


def memory() -> None:
    syscall("set_mempolicy", 3, struct.pack("<Q", 1), 64)  # MPOL_INTERLEAVE over node 0


def preferred_static() -> None:
    syscall("set_mempolicy", 1 | 1 << 15, struct.pack("<Q", 1), 64)  # MPOL_PREFERRED | MPOL_F_STATIC_NODES


ALL = [
    nice, negative_nice, batch, idle, fifo_that_was_nice, round_robin_reset_on_fork, deadline, own_slice, one_cpu,
    io_class, io_idle, slack, memory, preferred_static,
]  # fmt: skip


@pytest.mark.parametrize("kind", [plain, *ALL])
def test_scheduling(kind: Callable[[], None]) -> None:
    with Actor() as source, Actor() as there, Actor() as untouched:
        source.call(kind)
        before = collect(source).thread.scheduling
        assert (before == collect(untouched).thread.scheduling) == (kind is plain)
        program = Program("scheduling")
        before.restore(program, destination().cpus)
        there.run(program)
        assert collect(there).thread.scheduling == before
        assert seen(there, "Cpus_allowed") == seen(source, "Cpus_allowed")
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in (source.pid, there.pid)]
        for index in (15, 16, 37, 38):  # priority, nice, rt_priority, policy
            assert fields[0][index] == fields[1][index]


def test_policies_are_left_again() -> None:
    """What is inherited from the restorer does not stay: from a real-time policy, bound and idle, back to plain."""
    with Actor() as source, Actor() as there:
        for kind in (one_cpu, io_class, nice, idle):
            there.call(kind)
        before = collect(source).thread.scheduling
        program = Program("scheduling")
        before.restore(program, destination().cpus)
        there.run(program)
        assert collect(there).thread.scheduling == before


def test_the_kernels_own_slice_is_not_a_choice() -> None:
    with Actor() as source:
        assert collect(source).thread.scheduling.runtime == 0
        source.call(own_slice)
        assert collect(source).thread.scheduling.runtime == 700_000


def test_fewer_and_more_cpus() -> None:
    with Actor() as source:
        free = collect(source).thread.scheduling
        assert free.all_cpus and host().cpus == destination().cpus
        source.call(one_cpu)
        bound = collect(source).thread.scheduling
        assert (bound.cpus, bound.all_cpus) == (2, False)

    def mask(scheduling: Scheduling, cpus: int) -> int:
        program = Program("scheduling")
        scheduling.restore(program, cpus)
        op = next(op for op in program.branches[0] if op.name == "sched_setaffinity")
        buffer = op.args[2]
        assert isinstance(buffer, Buffer)
        return int.from_bytes(program.content[buffer.offset : buffer.offset + buffer.size], "little")

    assert mask(free, 0xFFFF) == 0xFFFF and free.warnings("t", 1) == []
    assert mask(bound, 0xFFFF) == 2 and bound.warnings("t", 0xFFFF) == []
    assert mask(bound, 1) == 1 and "may run on all there" in bound.warnings("t", 1)[0]
    some = replace(bound, cpus=0b1110)
    assert mask(some, 0b0111) == 0b0110
    assert some.warnings("t", 0b0111) == ["t: CPUs 3 are not at the destination; bound to the others"]


def test_problems() -> None:
    with Actor() as source:
        source.call(memory)
        scheduling = collect(source).thread.scheduling
        assert scheduling.problems("t", 1) == []
        assert "NUMA" in replace(scheduling, memory_nodes=2).problems("t", 1)[0].what


def test_lists_of_cpus() -> None:
    assert cpu_mask("0-3,8\n") == 0x10F
    assert cpu_mask("\n") == 0
    assert cpu_mask("5") == 0x20

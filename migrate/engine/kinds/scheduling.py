"""How a thread is scheduled: policy and its numbers, nice, CPUs, I/O priority, timer slack, memory policy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from migrate.engine.kernel.prctl import PR_GET_TIMERSLACK, PR_SET_TIMERSLACK
from migrate.engine.program import Program, Results
from migrate.errors import Problem

SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE = 0, 1, 2, 3, 5, 6
_FAIR = (SCHED_OTHER, SCHED_BATCH, SCHED_IDLE)
_ATTR = struct.Struct("<IIQiIQQQ")  # struct sched_attr, first version: 48 bytes (sched_setattr(2))
_SET_BYTES = 1024  # CPUs / 8; must be no less than the kernel's nr_cpu_ids, and NR_CPUS is 8192 at most on x86-64
_NODE_BYTES = 128  # MAX_NUMNODES is 1024 at most
IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASS_SHIFT = 13
PRIO_PROCESS = 0


@dataclass(frozen=True)
class Scheduling:
    """Times in nanoseconds."""

    policy: int
    flags: int  # SCHED_FLAG_*
    nice: int
    priority: int  # of SCHED_FIFO and SCHED_RR
    runtime: int  # SCHED_DEADLINE; of the fair ones a slice of their own choice (Linux 6.12), 0: the kernel's
    deadline: int
    period: int
    cpus: int  # bit mask
    all_cpus: bool  # the thread may use every CPU of the source, so it is not bound
    ioprio: int
    timer_slack: int
    memory_policy: int
    memory_nodes: int  # bit mask

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results, int, int], Scheduling]:
        """Six ops. The decoder also takes the mask of the CPUs that are online (a thread with all of these is not
        bound), and the slice that the kernel gives by itself (`default_slice`)."""
        attr = program.space(_ATTR.size)
        cpus = program.space(_SET_BYTES)
        policy = program.space(8)
        nodes = program.space(_NODE_BYTES)
        program.syscall("sched_getattr", 0, attr, _ATTR.size, 0, label="scheduling policy")
        nice = program.syscall("getpriority", PRIO_PROCESS, 0, label="nice")  # sched_getattr hides that of SCHED_FIFO
        affinity = program.syscall("sched_getaffinity", 0, _SET_BYTES, cpus, label="CPUs")
        ioprio = program.syscall("ioprio_get", IOPRIO_WHO_PROCESS, 0, label="I/O priority")
        slack = program.syscall("prctl", PR_GET_TIMERSLACK, 0, 0, 0, 0, label="timer slack")
        # ENOSYS without CONFIG_NUMA: the room stays zero, MPOL_DEFAULT
        program.syscall("get_mempolicy", policy, nodes, _NODE_BYTES * 8, 0, 0, label="memory policy", ignore=True)

        def decode(results: Results, online: int, slice_: int) -> Scheduling:
            _, kind, flags, _, priority, runtime, deadline, period = _ATTR.unpack(results.bytes(attr))
            mask = int.from_bytes(results.bytes(cpus)[: results.of(affinity)], "little")
            return cls(
                kind,
                flags,
                20 - results.of(nice),  # the bare call gives 1 to 40 (getpriority(2), C library/kernel differences)
                priority,
                0 if kind in _FAIR and runtime == slice_ else runtime,
                deadline,
                period,
                mask,
                mask & online == online,
                results.of(ioprio),
                results.of(slack),
                int.from_bytes(results.bytes(policy)[:4], "little"),
                int.from_bytes(results.bytes(nodes), "little"),
            )

        return decode

    def problems(self, where: str, nodes: int) -> list[Problem]:
        """``nodes``: mask of those online at the destination."""
        missing = self.memory_nodes & ~nodes
        if self.memory_policy and missing:
            return [Problem(where, f"its memory policy names NUMA nodes that the destination lacks ({missing:#x})")]
        return []

    def warnings(self, where: str, cpus: int) -> list[str]:
        """What will be different where the CPUs are ``cpus``."""
        missing = self.cpus & ~cpus
        if self.all_cpus or not missing:
            return []
        names = ", ".join(str(cpu) for cpu in range(missing.bit_length()) if missing >> cpu & 1)
        if not self.cpus & cpus:
            return [f"{where}: bound to CPUs that the destination lacks ({names}); it may run on all there"]
        return [f"{where}: CPUs {names} are not at the destination; bound to the others"]

    def inherited_from(self, maker: Scheduling) -> bool:
        """Whether a thread has all of this from the one that made it (clone(2)). Real-time and deadline threads are
        left out, whose children may start as others (SCHED_RESET_ON_FORK, sched(7))."""
        return self == maker and self.policy in _FAIR and not self.flags

    def restore(self, program: Program, cpus: int) -> None:
        """By the thread itself, as root. ``cpus``: mask of those that it may use here."""
        # Before the policy: SCHED_DEADLINE does not let itself be bound, and a real-time thread has no slack to set
        # (since Linux 6.12 it is 0 and the call does nothing). 0 would mean the default, which it has.
        if self.timer_slack:
            program.syscall("prctl", PR_SET_TIMERSLACK, self.timer_slack, 0, 0, 0, label="timer slack")
        mask = cpus if self.all_cpus or not self.cpus & cpus else self.cpus & cpus
        raw = mask.to_bytes(-(-mask.bit_length() // 64) * 8, "little")
        program.syscall("sched_setaffinity", 0, len(raw), program.data(raw), label="CPUs")
        program.syscall("setpriority", PRIO_PROCESS, 0, self.nice, label="nice")
        values = (self.policy, self.flags, self.nice, self.priority, self.runtime, self.deadline, self.period)
        attr = program.data(_ATTR.pack(_ATTR.size, *values))
        program.syscall("sched_setattr", 0, attr, 0, label="scheduling policy")
        # Class "none" with a level is what old kernels show for a thread that never chose; they do not take it back.
        ioprio = self.ioprio if self.ioprio >> IOPRIO_CLASS_SHIFT else 0
        program.syscall("ioprio_set", IOPRIO_WHO_PROCESS, 0, ioprio, label="I/O priority")
        if self.memory_policy:
            nodes = program.data(self.memory_nodes.to_bytes(_NODE_BYTES, "little"))
            label = "memory policy"
            program.syscall("set_mempolicy", self.memory_policy, nodes, _NODE_BYTES * 8, label=label)


def cpu_mask(text: str) -> int:
    """The mask of a list of CPUs or nodes as the kernel writes it: ``0-3,8`` (/sys/devices/system/cpu/online)."""
    mask = 0
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            mask |= 1 << number
    return mask


def default_slice(program: Program) -> Callable[[Results], int]:
    """One op, to be run by a process that never chose a slice, such as ours: what sched_getattr shows of the kernel's
    own ("sched/eevdf: Use sched_attr::sched_runtime to set request/slice suggestion", 857b158dc5e8, Linux 6.12). 0
    when there is none, or ours is a real-time process.

    Setting that number would make it a choice, which a later change of the kernel's default would not reach.
    """
    attr = program.space(_ATTR.size)
    program.syscall("sched_getattr", 0, attr, _ATTR.size, 0, label="default slice")

    def decode(results: Results) -> int:
        _, policy, _, _, _, runtime, _, _ = _ATTR.unpack(results.bytes(attr))
        return int(runtime) if policy in _FAIR else 0

    return decode

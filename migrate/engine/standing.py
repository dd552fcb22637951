"""What is looked at, and put right, whenever a process has been stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from migrate.engine.cpu import Cpu
from migrate.engine.kinds import task
from migrate.engine.kinds.restart import uninterrupted
from migrate.engine.kinds.scheduling import cpu_mask, default_slice
from migrate.engine.program import Program
from migrate.engine.tracee.together import Seen
from migrate.engine.tracee.tree import Tracee
from migrate.pie import local


def hide_stop(tracee: Tracee, seen: Sequence[Seen]) -> None:
    """No sign in a system call that its thread was stopped. ``seen``: all threads; what is changed is noted there.

    Whoever is killed between the stop and this has some calls without a deadline end with EINTR, as they do by a
    SIGSTOP and a SIGCONT (`uninterrupted`): the kernel has decided that before a tracer is told of the stop."""
    for each in seen:
        unseen = uninterrupted(each.registers)
        if unseen is not each.registers:
            tracee.set_registers(each.tid, unseen)
            each.registers = unseen


def own_pid(raw: bytes) -> int:
    """Of a process or thread: the number in the innermost PID namespace, from status."""
    line = raw[raw.index(b"\nNSpid:") + 7 :]
    return int(line[: line.index(b"\n")].split()[-1])


def host() -> task.Host:
    """What a thread's state is compared with."""
    program = Program("the host")
    decode = default_slice(program)
    return task.Host(cpu_mask(Path("/sys/devices/system/cpu/online").read_text()), decode(local.run(program.link())))


def own_cpu() -> Cpu:
    """That of this host."""
    program = Program("the CPU")
    decode = Cpu.collect(program)
    return decode(local.run(program.link()))

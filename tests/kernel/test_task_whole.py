"""All of a task at once, in the order of a restore: nothing that one kind does undoes what another did."""

from __future__ import annotations

import os
import resource
import signal
import struct
from dataclasses import replace
from pathlib import Path

from migrate.engine.kernel import prctl as pr
from migrate.engine.kinds.signals import SignalActions
from migrate.engine.kinds.task import (
    Destination,
    restore_process_early,
    restore_process_late,
    restore_process_signals,
    restore_thread,
)
from migrate.engine.program import Program
from tests.kernel import test_task_credentials as credentials
from tests.kernel import test_task_scheduling as scheduling
from tests.kernel.actors import Actor, Task, collect, destination, seen, syscall
from tests.kernel.test_task_identity import _unregister

LINES = (
    "Name", "Uid", "Gid", "Groups", "SigQ", "SigPnd", "ShdPnd", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff",
    "CapBnd", "CapAmb", "NoNewPrivs", "Cpus_allowed", "Mems_allowed", "THP_enabled",
)  # fmt: skip


def _everything() -> None:
    os.setsid()
    syscall("rt_sigaction", 12, struct.pack("<QQQQ", 0x1000, 0x04000000, 0x2000, 1), 0, 8)
    syscall("rt_sigaction", 17, struct.pack("<QQQQ", 1, 0, 0, 0), 0, 8)
    syscall("sigaltstack", struct.pack("<QIIQ", 0x5555_0000, 0, 0, 0x8000), 0)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    for value in range(3):
        ident = bytearray(4)
        syscall("timer_create", 1, struct.pack("<Qiii44x", value, 40, 0, 0), ident)
        syscall("timer_settime", value, 0, struct.pack("<qqqq", 0, 0, 100, 0), 0)
    syscall("timer_delete", 1)
    syscall("prctl", pr.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    syscall("prctl", pr.PR_SET_THP_DISABLE, 1, 0, 0, 0)
    Path("/proc/self/oom_score_adj").write_text("77")
    Path("/proc/self/coredump_filter").write_text("0x13")
    scheduling.nice()
    scheduling.slack()
    scheduling.io_class()
    scheduling.one_cpu()
    syscall("personality", 0x0040000)
    syscall("prctl", 15, b"everything\0", 0, 0, 0)
    me = os.getpid()
    for number in (12, 45, 45):
        os.kill(me, number)
        syscall("tgkill", me, me, number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (5, 6))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    credentials.service()
    syscall("prctl", pr.PR_SET_PDEATHSIG, 10, 0, 0, 0)
    syscall("prctl", pr.PR_SET_DUMPABLE, 1, 0, 0, 0)


def _restore(task: Task, there: Actor, to: Destination) -> None:
    program = Program("everything")
    SignalActions.reset(program)
    restore_process_early(program, task.process, to)
    restore_process_signals(program, task.process, to)
    restore_thread(program, task.thread, task.process, to)
    restore_process_late(program, task.process, to)
    there.run(program)


def _comparable(task: Task) -> Task:
    """Without what passes by itself: what remains on timers, and the deadline that it is reckoned to be."""
    process = task.process
    real, virtual, prof = (replace(timer, remaining=bool(timer.remaining)) for timer in process.interval_timers.timers)
    posix = tuple(
        replace(timer, remaining=bool(timer.remaining), deadline=timer.deadline and round(timer.deadline / 1e8))
        for timer in process.posix_timers.timers
    )
    process = replace(
        process,
        interval_timers=replace(process.interval_timers, timers=(real, virtual, prof)),
        posix_timers=replace(process.posix_timers, timers=posix),
    )
    return Task(process, task.thread)


def test_everything() -> None:
    with Actor() as source, Actor() as there:
        source.call(_everything)
        before = collect(source)
        assert before.process.session == before.process.pid
        assert before.process.problems("p", destination(), {source.pid}) == []
        assert before.thread.problems("t", destination()) == []
        rseq = collect(there).thread.rseq
        assert rseq is not None and rseq == before.thread.rseq
        there.call(_unregister, rseq)
        moved = before.as_pid(there.pid)
        _restore(moved, there, destination())
        _assert_same(collect(there), moved)
        assert seen(there, *LINES) == seen(source, *LINES)
        for name in ("limits", "oom_score_adj", "coredump_filter", "personality", "timerslack_ns"):
            ours, theirs = (Path(f"/proc/{pid}/{name}").read_bytes() for pid in (source.pid, there.pid))
            assert ours == theirs, name


def _assert_same(after: Task, before: Task) -> None:
    after, before = _comparable(after), _comparable(before)
    assert after.thread == before.thread
    for ours, theirs in zip(after.process.posix_timers.timers, before.process.posix_timers.timers, strict=True):
        assert abs((ours.deadline or 0) - (theirs.deadline or 0)) <= 1
    assert replace(after.process, posix_timers=before.process.posix_timers) == before.process


def test_a_plain_process_keeps_its_group_apart() -> None:
    """Its session stays behind; it is not left in the group of whoever restores it."""
    with Actor() as source, Actor() as there:
        rseq = collect(there).thread.rseq
        assert rseq is not None
        there.call(_unregister, rseq)
        moved = collect(source).as_pid(there.pid)
        _restore(moved, there, destination())
        after = collect(there)
        assert after.process.pgrp == there.pid
        assert after.process.session == moved.process.session  # of the test, as the actors share it
        assert _comparable(after).thread == _comparable(moved).thread


def test_a_stop_on_its_way() -> None:
    """SIGSTOP is not queued, it is done: by whoever lets the task go."""
    with Actor() as source:
        task = collect(source)
        record = struct.pack("<iii", 19, 0, 0).ljust(128, b"\0")
        queue = replace(task.process.queue, records=(record,))
        assert queue.stops and queue.problems("p") == []
        program = Program("queue")
        queue.restore(program)
        assert [op.name for op in program.branches[0]] == ["getpid"]
        killed = replace(queue, records=(struct.pack("<iii", 9, 0, 0).ljust(128, b"\0"),))
        assert "SIGKILL" in killed.problems("p")[0].what


def test_destination() -> None:
    here = destination()
    assert here.can_raise == bool(int(seen_self("CapEff"), 16) >> 24 & 1)
    assert here.bounding == int(seen_self("CapBnd"), 16)
    assert here.cpus.bit_count() == os.cpu_count()


def seen_self(name: str) -> str:
    text = Path("/proc/self/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))

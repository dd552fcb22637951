"""What prctl, arch_prctl and personality set, and oom_score_adj and coredump_filter."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine import core_scheduling
from migrate.engine.kernel import prctl as pr
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.controls import ProcessControls, ThreadControls, refusals
from migrate.engine.program import Program
from tests.kernel.actors import Actor, collect, destination, syscall


def _prctl(*args: int) -> int:
    return syscall("prctl", *args, *(0,) * (5 - len(args)))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _restore_process(controls: ProcessControls, there: Actor) -> None:
    program = Program("controls")
    controls.restore_early(program, destination().oom_score_adj)
    controls.restore_late(program)
    there.run(program)


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [(pr.PR_SET_DUMPABLE, 0)],
        [(pr.PR_SET_CHILD_SUBREAPER, 1)],
        [(pr.PR_SET_THP_DISABLE, 1)],
        [(pr.PR_SET_THP_DISABLE, 1, 2)],  # PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18
        [(pr.PR_SET_MDWE, 1)],
        [(pr.PR_SET_MDWE, 3)],
        [(pr.PR_SET_DUMPABLE, 0), (pr.PR_SET_CHILD_SUBREAPER, 1), (pr.PR_SET_THP_DISABLE, 1), (pr.PR_SET_MDWE, 1)],
    ],
)
def test_process_controls(calls: list[tuple[int, ...]]) -> None:
    with Actor() as source, Actor() as there, Actor() as plain:
        for call in calls:
            source.call(_prctl, *call)
        before = collect(source).process.controls
        assert (before == collect(plain).process.controls) == (not calls)
        _restore_process(before, there)
        assert collect(there).process.controls == before


def test_what_was_inherited_is_undone() -> None:
    with Actor() as source, Actor() as there:
        there.call(_prctl, pr.PR_SET_THP_DISABLE, 1)
        there.call(_prctl, pr.PR_SET_CHILD_SUBREAPER, 1)
        there.call(_prctl, pr.PR_SET_DUMPABLE, 0)
        before = collect(source).process.controls
        _restore_process(before, there)
        assert collect(there).process.controls == before


def test_files() -> None:
    with Actor() as source, Actor() as there:
        source.call(_write, "/proc/self/oom_score_adj", "321")
        source.call(_write, "/proc/self/coredump_filter", "0x7f")
        before = collect(source).process.controls
        assert (before.oom_score_adj, before.coredump_filter) == (321, 0x7F)
        _restore_process(before, there)
        for name in ("oom_score_adj", "coredump_filter"):
            assert Path(f"/proc/{there.pid}/{name}").read_text() == Path(f"/proc/{source.pid}/{name}").read_text()


def test_dumpable_survives_a_change_of_credentials_only_if_late() -> None:
    with Actor() as there:
        assert there.call(_prctl, pr.PR_GET_DUMPABLE) == 1
        there.call(syscall, "setresuid", 1000, 1000, 1000)
        assert there.call(_prctl, pr.PR_GET_DUMPABLE) != 1
        program = Program("dumpable")
        controls = collect(there).process.controls
        replace(controls, dumpable=1).restore_late(program)
        there.run(program)
        assert there.call(_prctl, pr.PR_GET_DUMPABLE) == 1


def test_root_only_dumps_become_none() -> None:
    with Actor() as there:
        program = Program("dumpable")
        replace(collect(there).process.controls, dumpable=2).restore_late(program)
        there.run(program)
        assert there.call(_prctl, pr.PR_GET_DUMPABLE) == 0


@pytest.mark.parametrize(
    "call",
    [
        None,
        ("prctl", pr.PR_SET_PDEATHSIG, 12, 0, 0, 0),
        ("prctl", pr.PR_MCE_KILL, pr.PR_MCE_KILL_SET, 1, 0, 0),
        ("prctl", pr.PR_MCE_KILL, pr.PR_MCE_KILL_SET, 0, 0, 0),
        ("personality", 0x0040000),  # ADDR_NO_RANDOMIZE
        ("personality", 0x0400000 | 0x4000000),  # READ_IMPLIES_EXEC, STICKY_TIMEOUTS
    ],
)
def test_thread_controls(call: tuple[object, ...] | None) -> None:
    with Actor() as source, Actor() as there, Actor() as plain:
        if call:
            source.call(syscall, *call)
        before = collect(source).thread.controls
        assert (before == collect(plain).thread.controls) == (not call)
        program = Program("controls")
        before.restore(program, io_flusher=False)
        before.restore_late(program)
        there.run(program)
        assert collect(there).thread.controls == before


def test_tsc_mode() -> None:
    """In one program, since Python would not live long without the TSC: the vDSO's clocks read it."""
    with Actor() as there:
        program = Program("TSC")
        plain = ThreadControls(0, 1, True, 2, (-1, -1, -1), 0)
        replace(plain, tsc=2).restore(program, io_flusher=False)
        decode = ThreadControls.collect(program)
        program.syscall("prctl", pr.PR_SET_TSC, pr.PR_TSC_ENABLE, 0, 0, 0, label="as it was")
        decode_after = ThreadControls.collect(program)
        results = there.run(program)
        assert (decode(results).tsc, decode_after(results).tsc) == (2, 1)


def test_cpuid_mode() -> None:
    """The CPU here may not be able to make it fault; then nobody could have chosen it, and restoring says so."""
    with Actor() as there:
        program = Program("CPUID")
        replace(ThreadControls(0, 1, True, 2, (-1, -1, -1), 0), cpuid=False).restore(program, io_flusher=False)
        decode = ThreadControls.collect(program)
        able = "cpuid_fault" in Path("/proc/cpuinfo").read_text()
        if able:
            assert decode(there.run(program)).cpuid is False
        else:
            assert there.attempt(program) == ("CPUID mode", -19)  # ENODEV


def test_speculation() -> None:
    """Where the machine lets a thread choose, a choice is kept; where not, as mostly in guests, none is made."""
    with Actor() as source, Actor() as there:
        for which in range(3):
            state = source.call(_prctl, pr.PR_GET_SPECULATION_CTRL, which)
            if state & pr.PR_SPEC_PRCTL:
                choice = pr.PR_SPEC_ENABLE if which == pr.PR_SPEC_L1D_FLUSH else pr.PR_SPEC_DISABLE
                source.call(_prctl, pr.PR_SET_SPECULATION_CTRL, which, choice)
        before = collect(source).thread.controls
        program = Program("controls")
        before.restore(program, io_flusher=False)
        there.run(program)
        assert collect(there).thread.controls == before


def _speculation(states: tuple[int, int, int]) -> list[tuple[int, int]]:
    program = Program("controls")
    ThreadControls(0, 1, True, 2, states, 0).restore(program, io_flusher=False)
    ops = [op for op in program.branches[0] if op.args[0] == pr.PR_SET_SPECULATION_CTRL]
    choices = [(op.args[1], op.args[2]) for op in ops]
    return [(which, what) for which, what in choices if isinstance(which, int) and isinstance(what, int)]


def test_which_speculation_states_are_choices() -> None:
    assert _speculation((0, 2, 8)) == []  # not affected, always on, always off: nothing to choose
    assert _speculation((-22, -19, -22)) == []
    assert _speculation((3, 3, 5)) == []  # a choice, and the defaults
    assert _speculation((5, 9, 3)) == [(0, 4), (1, 8), (2, 2)]
    assert _speculation((17, 3, 5)) == [(0, 16)]


def test_problems() -> None:
    with Actor() as source:
        controls = collect(source).process.controls
        low = replace(controls, oom_score_adj=-500, memory_merge=True, io_flusher=True)
        assert low.problems("pid 1", 0, can_raise=True) == []
        found = [problem.what for problem in low.problems("pid 1", 0, can_raise=False)]
        assert found[0] == "oom_score_adj is -500, and the destination cannot go below 0"
        assert [what.split()[0] for what in found[1:]] == ["PR_SET_MEMORY_MERGE", "PR_SET_IO_FLUSHER"]
        assert controls.problems("pid 1", controls.oom_score_adj, can_raise=False) == []


def test_refusals() -> None:
    off, on = bytes(32), (1).to_bytes(8, "little") + bytes(24)
    assert refusals("thread 7", None) == refusals("thread 7", off) == []
    assert "user dispatch" in refusals("thread 7", on)[0].what


def test_numbers_are_those_of_the_headers() -> None:
    header = Path("/usr/include/linux/prctl.h").read_text()
    found = re.findall(r"#\s*define\s+(PR_\w+)\s+(0x[0-9a-f]+|\d+)\s", header)
    known = {name: int(value, 0) for name, value in found}
    ours = {name: value for name, value in vars(pr).items() if name.startswith("PR_")}
    both = ours.keys() & known.keys()
    assert len(both) > 30
    assert {name: ours[name] for name in both} == {name: known[name] for name in both}


def _alone(nice: int) -> None:
    os.setsid()  # which comes with a group of its own
    Path("/proc/self/autogroup").write_text(str(nice))


def test_autogroup() -> None:
    with Actor() as source, Actor() as there:
        source.call(_alone, 7)
        there.call(_alone, 0)
        before = collect(source).process.controls
        assert before.autogroup == 7
        _restore_process(before, there)
        assert collect(there).process.controls == before
        assert Path(f"/proc/{there.pid}/autogroup").read_text().endswith(" nice 7\n")


def test_a_kernel_without_autogroups() -> None:
    """Nothing is to be set there."""
    with Actor() as there:
        program = Program("controls")
        controls = replace(collect(there).process.controls, autogroup=3)
        controls.restore_early(program, destination().oom_score_adj)
        image = program.content.replace(b"/proc/self/autogroup\0", b"/proc/self/autogr_up\0")
        assert image != program.content
        program.content[:] = image
        there.run(program)


def test_cookies_of_core_scheduling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused for each thread that has one; without SMT, as here or in a guest mostly, none can have one."""
    with Proc(os.getpid()) as proc:
        first = proc.tids()[0]
        monkeypatch.setattr(core_scheduling, "cookie", lambda tid: int(tid == first))
        assert [problem.where for problem in core_scheduling.problems(proc)] == [f"thread {first}"]
    monkeypatch.undo()
    try:
        syscall("prctl", 62, 1, 0, 0, 0)  # PR_SCHED_CORE_CREATE
        made = True
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.ENODEV)
        made = False
    assert bool(core_scheduling.cookie(os.getpid())) == made

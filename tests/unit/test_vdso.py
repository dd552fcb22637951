"""The vDSO: read from this very process, compared with others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine import vdso
from migrate.engine.kernel.maps import maps
from migrate.engine.program import Program
from migrate.engine.vdso import VDSO, Area, Decision
from migrate.pie.local import run


@pytest.fixture
def own() -> VDSO:
    areas = vdso.areas(maps(Path("/proc/self/maps").read_text()))
    program = Program("the vDSO")
    decode = vdso.collect(program, areas)
    return decode(run(program.link()))


def test_read_from_a_process(own: VDSO) -> None:
    symbols = dict(own.symbols)
    assert symbols["__vdso_clock_gettime"] == symbols["clock_gettime"] > 0
    assert own.build_id
    assert {area.name for area in own.areas} >= {"[vvar]", "[vdso]"}


def test_same(own: VDSO) -> None:
    moved = replace(own, areas=tuple(Area(a.name, a.start + 0x100000, a.end + 0x100000) for a in own.areas))
    verdict = vdso.decide(own, moved, "pid 7")
    assert verdict.decision is Decision.SAME and verdict.exact and verdict.problem is None
    assert not vdso.decide(own, replace(moved, build_id="other"), "pid 7").exact


def test_different_is_a_problem_that_says_why(own: VDSO) -> None:
    other = replace(own, symbols=tuple((n, o + 16) if n == "__vdso_time" else (n, o) for n, o in own.symbols))
    verdict = vdso.decide(own, other, "pid 7")
    assert verdict.decision is Decision.DIFFERENT and verdict.problem is not None
    assert verdict.problem.what == "the vDSO differs: 1 functions missing or elsewhere: __vdso_time"
    low, *rest = own.areas
    apart = (low, *(Area(a.name, a.start + 4096, a.end + 4096) for a in rest))
    problem = vdso.decide(own, replace(own, areas=apart), "pid 7").problem
    assert problem is not None and "areas [vvar]" in problem.what


def test_none() -> None:
    assert vdso.decide(VDSO(()), VDSO((Area("[vdso]", 0, 4096),)), "pid 7").decision is Decision.NONE


def test_parked_then_placed_and_what_is_not_wanted_removed() -> None:
    program = Program("x")
    here = (Area("[vvar]", 0x1000, 0x3000), Area("[vdso]", 0x3000, 0x4000))
    parked = vdso.park_ops(program, here, 0x10000, 0x20000)
    assert parked == (Area("[vvar]", 0x10000, 0x12000), Area("[vdso]", 0x12000, 0x13000))
    vdso.place_ops(program, parked, (Area("[vdso]", 0x2000, 0x3000),))
    assert [(op.name, op.args[0], op.args[-1]) for op in program.branches[0]] == [
        ("mremap", 0x1000, 0x10000),
        ("mremap", 0x3000, 0x12000),
        ("munmap", 0x10000, 0x2000),
        ("mremap", 0x12000, 0x2000),
    ]
    with pytest.raises(ValueError, match="no room to park"):
        vdso.park_ops(Program("x"), here, 0x10000, 0x11000)
    with pytest.raises(ValueError, match=r"this kernel has no \[vvar_vclock\]"):
        vdso.place_ops(Program("x"), parked, (Area("[vvar_vclock]", 0, 4096),))

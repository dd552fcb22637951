"""What becomes of a vDSO on another kernel, over the symbol tables of five kernels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine import vdso
from migrate.engine.image.codec import decode, encode
from migrate.engine.kernel.maps import maps
from migrate.engine.program import Program
from migrate.engine.vdso import VDSO, Area, Decision, Function, NoVDSO, Verdict, decide
from migrate.pie.local import run
from tests.unit import vdsos

PAIRS = list(itertools.permutations(vdsos.KERNELS, 2))


@pytest.fixture
def own() -> VDSO:
    areas = vdso.areas(maps(Path("/proc/self/maps").read_text()))
    program = Program("the vDSO")
    read = vdso.collect(program, areas)
    return read(run(program.link()))


def test_read_from_a_process(own: VDSO) -> None:
    offsets = {function.name: function.offset for function in own.functions}
    assert offsets["__vdso_clock_gettime"] == offsets["clock_gettime"] > 0
    assert all(function.version == "LINUX_2.6" for function in own.functions)
    assert {area.name for area in own.areas} >= {"[vvar]", "[vdso]"}
    assert decode(VDSO, encode(own)) == own


def test_the_tables_of_five_kernels() -> None:
    """The offsets that nm(1) shows."""
    table = {
        name: [{f.name: f.offset for f in vdsos.vdso(kernel).functions}.get(name) for kernel in vdsos.KERNELS]
        for name in ("__vdso_clock_gettime", "time", "__vdso_getrandom", "__vdso_sgx_enter_enclave")
    }
    assert table == {
        "__vdso_clock_gettime": [0x900, 0x960, 0xBC0, 0xAF0, 0xCE0],
        "time": [0x8D0, 0x930, 0xB90, 0xAC0, 0xCB0],
        "__vdso_getrandom": [None, None, 0x1020, 0xF40, 0x1120],
        "__vdso_sgx_enter_enclave": [None, 0xC50, 0x1560, None, 0x1630],
    }
    assert [len(vdsos.vdso(kernel).entries()) for kernel in vdsos.KERNELS] == [5, 6, 7, 6, 9]
    aliases = [[f.name for f in aliases] for aliases in vdsos.vdso("7.2").entries().values()]
    assert ["__vdso_getcpu", "getcpu"] in aliases and ["__vdso_futex_robust_list64_try_unlock"] in aliases


@pytest.mark.parametrize("kernel", vdsos.KERNELS)
def test_the_same_kernel(kernel: str) -> None:
    ours, theirs = vdsos.vdso(kernel), vdsos.vdso(kernel, vdsos.BASE + 0x100000)
    verdict = decide(ours, theirs, "pid 7")
    assert verdict.decision is Decision.REMAP and not verdict.problems
    assert all(entry.there == entry.offset for entry in verdict.entries)
    # The same build on another CPU, to which it has been patched.
    patched = replace(theirs, image=theirs.image[:0x800] + b"\x90" + theirs.image[0x801:])
    verdict = decide(ours, patched, "pid 7")
    assert verdict.decision is Decision.REMAP
    assert decide(ours, theirs, "pid 7", differ=True).decision is Decision.PROXY


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_every_other_pair_needs_a_proxy(here: str, there: str) -> None:
    ours, theirs = vdsos.vdso(here), vdsos.vdso(there)
    verdict = decide(ours, theirs, "pid 7")
    assert verdict.decision is Decision.PROXY and verdict.problems == ()
    offsets = {function.name: function.offset for function in theirs.functions}
    names = [name for entry in verdict.entries for name in entry.names]
    assert sorted(names) == sorted(function.name for function in ours.functions)
    for entry in verdict.entries:
        assert entry.there == offsets.get(entry.name)
        assert bool(entry.stub) == (entry.there is None)
        assert entry.room >= 5
    for entry, following in itertools.pairwise(verdict.entries):
        assert entry.offset + entry.room <= following.offset


def test_the_destination_has_none() -> None:
    """vdso=0: every function becomes a stub."""
    for kernel in vdsos.KERNELS:
        verdict = decide(vdsos.vdso(kernel), VDSO(()), "pid 7")
        assert verdict.decision is Decision.PROXY and not verdict.problems
        assert all(entry.there is None and entry.stub for entry in verdict.entries)


def test_the_task_has_none() -> None:
    assert decide(VDSO(()), vdsos.vdso("6.1"), "pid 7").decision is Decision.NONE
    assert decide(VDSO(()), VDSO(()), "pid 7").decision is Decision.NONE
    # What is left of it must fit.
    (vvar, *_) = vdsos.areas("6.18")
    assert not decide(VDSO((vvar,)), vdsos.vdso("5.10"), "pid 7").problems
    (problem,) = decide(VDSO((replace(vvar, end=vvar.end + 4096),)), vdsos.vdso("5.10"), "pid 7").problems
    assert "[vvar]" in problem.what and "without a vDSO" in problem.what


def test_everything_counts() -> None:
    """Size, version, an alias, the order of the areas: each of them alone makes a difference."""
    ours = vdsos.vdso("6.12")
    first, *rest = ours.functions
    for other in (
        replace(ours, functions=(replace(first, size=first.size + 1), *rest)),
        replace(ours, functions=(replace(first, version="LINUX_7"), *rest)),
        replace(ours, functions=tuple(rest)),
        replace(ours, functions=(*ours.functions, Function("__vdso_new", 0x1600, 16, "LINUX_2.6"))),
        replace(ours, areas=(Area("[vdso]", 0, 0x2000), Area("[vvar]", 0x2000, 0x6000))),
        replace(ours, areas=vdsos.areas("6.18")),
    ):
        assert decide(ours, other, "pid 7").decision is Decision.PROXY
    # A function of another version is another function.
    other = replace(ours, functions=(replace(first, version="LINUX_7"), *rest))
    entry = next(entry for entry in decide(ours, other, "pid 7").entries if first.name in entry.names)
    assert entry.there is not None  # its alias is still there
    without = replace(other, functions=tuple(f for f in other.functions if f.offset != first.offset))
    entry = next(entry for entry in decide(ours, without, "pid 7").entries if first.name in entry.names)
    assert entry.there is None and entry.stub


def test_refused_by_name() -> None:
    ours = vdsos.vdso("6.12")
    unknown = replace(ours, functions=(*ours.functions, Function("__vdso_teleport", 0x1600, 16, "LINUX_2.6")))
    (problem,) = decide(unknown, vdsos.vdso("6.1"), "pid 7").problems
    assert problem.where == "pid 7" and "no __vdso_teleport" in problem.what
    tight = replace(ours, functions=(*ours.functions, Function("__vdso_time2", 0xBBE, 2, "LINUX_2.6")))
    there = replace(vdsos.vdso("6.1"), functions=(Function("__vdso_time2", 0x100, 2, "LINUX_2.6"),))
    (problem,) = decide(tight, there, "pid 7").problems
    assert "__vdso_time2 in its vDSO has 2 bytes" in problem.what


def test_the_table_for_people() -> None:
    verdict = decide(vdsos.vdso("7.2"), vdsos.vdso("5.10"), "pid 7")
    head, columns, *rows = verdict.table()
    assert head.startswith("vDSO: proxy; source [vvar] 0x4000 at +0x0, [vvar_vclock] 0x2000 at +0x4000, [vdso] 0x2000")
    assert columns.split() == ["function", "source", "dest.", "what", "is", "done"]
    shown = {row.split()[0]: row for row in rows}
    assert shown["__vdso_time"].split()[1:] == ["(time)", "cb0", "8d0", "jump"]
    assert shown["__vdso_getrandom"].split(None, 3)[1:] == ["(getrandom)", "1120", "–  system call getrandom"]
    assert shown["__vdso_sgx_enter_enclave"].endswith("fails with ENOSYS")
    assert shown["__vdso_futex_robust_list32_try_unlock"].endswith("the same code, in the stub")
    same = decide(vdsos.vdso("6.1"), vdsos.vdso("6.1"), "pid 7").table()
    assert same[0].startswith("vDSO: remap") and "in its place" in same[2]
    assert Verdict(Decision.NONE, VDSO(()), VDSO(())).table() == ["vDSO: none; the process has none, and gets none"]


_ELF = b"\x7fELF\2\1"


@pytest.mark.parametrize("content", [b"\x7fELF", b"x" * 8192, _ELF + bytes(8186), _ELF + b"\xff" * 9000])
def test_what_is_no_vdso(content: bytes) -> None:
    with pytest.raises(NoVDSO):
        VDSO.read((Area("[vdso]", 0, 0x2000),), content)


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

"""The vDSO of a program of 32 bits on other kernels, and what is made of it."""

from __future__ import annotations

import itertools
import struct

import pytest

from migrate.engine.vdso import VDSO, Decision, build, choose_base, decide, room_needed
from migrate.engine.vdso.image import Area
from migrate.engine.vdso.stubs import kernel_entry_32
from tests.unit import vdsos

KERNELS = vdsos.IA32_KERNELS
PAIRS = list(itertools.permutations(KERNELS, 2))
BASE = 0x4000_0000
PROLOGUE = bytes.fromhex("515255"), bytes.fromhex("cd805d5a59c3")  # push…; int $0x80, pop…, ret


def code_at(vdso: VDSO, name: str, content: bytes, size: int) -> bytes:
    (function,) = [each for each in vdso.functions if each.name == name]
    return content[function.offset : function.offset + size]


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_in_it(kernel: str) -> None:
    vdso = vdsos.ia32(kernel)
    assert vdso.compat and not vdsos.vdso(kernel).compat
    names = {"__kernel_vsyscall", "__kernel_sigreturn", "__kernel_rt_sigreturn"}
    assert {function.name for function in vdso.kernel_entries} == names
    assert {"__vdso_clock_gettime64", "__vdso_time"} <= {function.name for function in vdso.functions}
    verdict = decide(vdso, vdso, "pid 1")
    assert verdict.decision is Decision.REMAP and not verdict.problems


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_every_function_leads_somewhere(here: str, there: str) -> None:
    """Into the other one, or to a stub; but for the way into the kernel, which is one that needs no vDSO of the
    kernel's, and the ways back from handlers."""
    task, other = vdsos.ia32(here), vdsos.ia32(there)
    verdict = decide(task, other, "pid 1")
    assert verdict.decision is Decision.PROXY and not verdict.problems
    made = build(verdict, BASE)
    assert task.area is not None
    rt = next(area for area in made.rt if area.name == "[vdso]")
    for function in task.functions:
        if function.name.startswith("__vdso_"):
            code = code_at(task, function.name, made.content, 5)
            (distance,) = struct.unpack("<I", code[1:])
            target = (task.area.start + function.offset + 5 + distance) & 0xFFFF_FFFF
            theirs = {each.name: rt.start + each.offset for each in other.functions}
            assert code[0] == 0xE9
            assert target == theirs[function.name] if function.name in theirs else target > made.area.start
    for name in ("__kernel_sigreturn", "__kernel_rt_sigreturn"):
        assert code_at(task, name, made.content, 8) == code_at(task, name, task.image, 8)
    way_in = code_at(task, "__kernel_vsyscall", made.content, 13)
    assert way_in.startswith(b"\xcd\x80\xc3") or way_in == PROLOGUE[0] + b"\x0f\x1f\x40\x00" + PROLOGUE[1]
    assert any("__kernel_sigreturn" in line and "stays" in line for line in verdict.table())


def test_a_patched_way_in_of_7() -> None:
    """As it is for a CPU with sysenter, with nothing before it."""
    plain = bytes.fromhex("cd80c3" "515255" "89e50f34" "cd805d5a59c3cc")
    for head in ("909090", "eb0190"):
        patched = bytes.fromhex(head) + plain[3:]
        assert kernel_entry_32("__kernel_vsyscall", patched) == patched[:6] + b"\x0f\x1f\x40\x00"
    assert kernel_entry_32("__kernel_vsyscall", plain) == b""


def test_what_nobody_knows_is_refused() -> None:
    task = vdsos.ia32("6.1")
    (function,) = [each for each in task.functions if each.name == "__kernel_vsyscall"]
    image = task.image[: function.offset] + b"\x0f\x0b" + task.image[function.offset + 2 :]
    verdict = decide(VDSO(task.areas, task.functions, image), vdsos.ia32("7.2"), "pid 1")
    assert any("__kernel_vsyscall, of which nothing is known" in problem.what for problem in verdict.problems)


def test_the_other_one_is_below_4_gib() -> None:
    verdict = decide(vdsos.ia32("5.10"), vdsos.ia32("7.2"), "pid 1")
    size, near = room_needed(verdict), verdict.task.area
    assert near is not None
    base = choose_base([(1 << 20, 0xF000_0000)], [], near, size, compat=True)
    assert 0xF000_0000 <= base < base + size < 1 << 32
    little = [(1 << 20, 0xF7E0_0000), (0xF7F1_0000, 1 << 32)]  # what its stack may want has to be used
    assert 0xF7E0_0000 < choose_base(little, [(0xF000_0000, 1 << 32)], Area("", 0, 1), size, compat=True) < 0xF7F1_0000

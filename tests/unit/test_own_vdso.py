"""What is taken for the vDSO of a task, and what is refused: over mappings and memory of our own making."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from migrate.engine.kinds.own_vdso import OwnVDSO, RestoredVDSO, find_mark, look
from migrate.engine.kinds.vma import RT, VMA
from migrate.engine.program import Program
from migrate.engine.vdso import VDSO, Area, Mark, build, decide
from migrate.errors import Failed
from tests.unit import vdsos

HERE = 0x7FFF_F7E0_0000
RT_BASE = 0x7FFF_FFF0_0000
READ, WRITE, EXEC = 1, 2, 4
NATIVE = vdsos.vdso("6.18", 0x7FFF_0000_0000)


class Task:
    """Mappings and what stands in them."""

    def __init__(self) -> None:
        self.vmas: list[VMA] = []
        self.memory: dict[int, bytes] = {}

    def map(self, start: int, end: int, prot: int, name: str = "", content: bytes = b"", flags: str = "") -> VMA:
        vma = VMA(start, end, prot, False, None, 0, name, flags)
        self.vmas = sorted([*self.vmas, vma], key=lambda each: each.start)
        self.memory[start] = content.ljust(end - start, b"\0")
        return vma

    def special(self, areas: Iterable[Area], content: bytes) -> None:
        for area in areas:
            code = area.name == "[vdso]"
            self.map(area.start, area.end, READ | EXEC if code else READ, area.name, content if code else b"")

    def unmap(self, name: str) -> None:
        self.vmas = [vma for vma in self.vmas if vma.name != name]

    def change(self, name: str, **to: Any) -> None:
        self.vmas = [replace(vma, **to) if vma.name == name else vma for vma in self.vmas]

    def read(self, address: int, size: int) -> bytes:
        for start, content in self.memory.items():
            if start <= address and address + size <= start + len(content):
                if any(vma.start <= address and address + size <= vma.end for vma in self.vmas):
                    return content[address - start : address - start + size]
        raise OSError(14, "Bad address")

    def look(self, native: VDSO = NATIVE) -> OwnVDSO:
        return look(self.vmas, self.read, native, "pid 7")

    def refused(self, native: VDSO = NATIVE) -> str:
        (problem,) = self.look(native).problems
        assert problem.where == "pid 7" and problem.advice
        return problem.what


@pytest.fixture
def plain() -> Task:
    """A task with its kernel's own, and something else."""
    task = Task()
    task.map(0x1000, 0x5000, READ | EXEC)
    task.special(vdsos.areas("6.18", HERE), NATIVE.image)
    return task


def test_its_kernels_own_wherever_it_is(plain: Task) -> None:
    own = plain.look()
    assert own.problems == () and own.mark is None
    assert own.vdso == vdsos.vdso("6.18", HERE)
    area = own.vdso.area
    assert area is not None and area.start + 0xAF0 in own.entries and area.start + 0xAF1 not in own.entries
    assert [place for place, _ in own.code(NATIVE)] == [area]
    assert own.named(plain.vmas) is plain.vmas


def test_none_and_what_is_left_of_it(plain: Task) -> None:
    plain.unmap("[vdso]")
    own = plain.look()
    assert own.problems == () and own.vdso.area is None and [a.name for a in own.vdso.areas] == [
        "[vvar]", "[vvar_vclock]"
    ]  # fmt: skip
    assert own.entries == frozenset() and own.code(NATIVE) == []
    plain.unmap("[vvar]")
    plain.unmap("[vvar_vclock]")
    assert plain.look().vdso == VDSO(()) and not plain.look().problems


def test_gone_in_part(plain: Task) -> None:
    plain.unmap("[vvar_vclock]")
    assert "unmapped in part, or moved apart: [vvar] 0x4000 at +0x0, [vdso] 0x2000 at +0x6000" in plain.refused()
    plain.unmap("[vvar]")
    assert "unmapped in part" in plain.refused()


@pytest.mark.parametrize("name", ["[vvar]", "[vdso]"])
def test_cut_off_or_moved_apart(plain: Task, name: str) -> None:
    vma = next(vma for vma in plain.vmas if vma.name == name)
    whole = plain.vmas
    plain.change(name, end=vma.end - 4096)
    assert "unmapped in part" in plain.refused()
    plain.vmas = whole
    plain.change(name, start=vma.start - 0x10000, end=vma.end - 0x10000)
    plain.vmas.sort(key=lambda each: each.start)
    assert "moved apart" in plain.refused()


def test_in_parts_or_writable(plain: Task) -> None:
    vma = next(vma for vma in plain.vmas if vma.name == "[vdso]")
    plain.change("[vdso]", prot=READ | WRITE | EXEC)
    assert "protection was changed" in plain.refused()
    plain.change("[vdso]", prot=vma.prot, end=vma.start + 4096)
    plain.vmas.append(replace(vma, start=vma.start + 4096))
    assert "mapped in parts" in plain.refused()


def test_written_to_and_not_of_this_kernel(plain: Task) -> None:
    assert "gives none to a new process" in plain.refused(VDSO(()))
    at = HERE + 0x6000
    plain.memory[at] = plain.memory[at][:0x900] + b"\xcc" + plain.memory[at][0x901:]
    assert "written to" in plain.refused()
    plain.memory[at] = b"\x7fELF\1" + bytes(8187)  # that of an x32 process
    assert "no ELF image that can be read" in plain.refused()
    # Behind the image is what tracers use.
    plain.memory[at] = NATIVE.image.ljust(0x1F00, b"\0") + b"\xcc" * 0x100
    assert not plain.look().problems


def proxied(theirs: VDSO = NATIVE, droppable: tuple[tuple[int, int], ...] = ()) -> Task:
    """A task of 6.1 on a kernel with another, or with none."""
    task = Task()
    made = build(decide(vdsos.vdso("6.1", HERE), theirs, "pid 7"), RT_BASE, droppable)
    mark, *places, proxy = made.mapped
    task.special(made.rt, NATIVE.image)
    task.map(mark.start, mark.end, READ | EXEC, "[anon:vDSO proxy]", made.own)
    for place in places:
        task.map(place.start, place.end, READ, "[anon:vDSO proxy]")
    task.map(proxy.start, proxy.end, READ | EXEC, "[anon:vDSO proxy]", made.content)
    return task


@pytest.mark.parametrize("theirs", [NATIVE, VDSO(())])
def test_a_proxy_stands_for_what_was_there(theirs: VDSO) -> None:
    task = proxied(theirs)
    own = task.look()
    assert own.problems == () and own.mark is not None and own.mark.rt == tuple(a for a in own.mark.rt)
    assert own.vdso == vdsos.vdso("6.1", HERE)
    names = [(vma.name, vma.start) for vma in own.named(task.vmas)]
    ours = [("[vvar]", HERE), ("[vdso]", HERE + 0x4000)]
    assert [each for each in names if each[0] != RT] == ours
    assert len(names) == 3 + len(theirs.areas)
    # A thread may be in the task's, in the rt-vdso or in a stub; only of the former two is there an image.
    code = own.code(NATIVE)
    assert [area.start for area, _ in code] == [
        HERE + 0x4000, *([RT_BASE + 0x6000] if theirs.areas else []), own.mark.address
    ]  # fmt: skip
    assert code[0][1].image == vdsos.image("6.1") and not code[-1][1].image


def test_cut_out_of_larger_areas() -> None:
    """Where areas have no names, ours merge with what the task maps next to them, and with each other."""
    task = proxied()
    merged = []
    for vma in task.vmas:
        named = vma.name.startswith("[anon")
        vma = replace(vma, name="") if named else vma
        if named and vma.prot == READ:
            vma = replace(vma, start=vma.start - 0x3000)
        if named and vma.start == HERE + 0x4000:
            vma = replace(vma, end=vma.end + 0x5000)
        merged.append(vma)
    own = task.look()
    assert own.mark is not None
    found = [(vma.start, vma.end, vma.name) for vma in own.named(merged) if vma.name != RT]
    assert found == [
        (HERE - 0x3000, HERE, ""),
        (HERE, HERE + 0x4000, "[vvar]"),
        (HERE + 0x4000, HERE + 0x6000, "[vdso]"),
        (HERE + 0x6000, HERE + 0xB000, ""),
    ]


def test_a_proxy_that_was_meddled_with() -> None:
    for kind in ("rt", "written", "part", "moved", "mark"):
        task = proxied()
        proxy = next(vma for vma in task.vmas if vma.start == HERE + 0x4000)
        mark = next(vma for vma in task.vmas if vma.prot == READ | EXEC and vma.name.startswith("[anon"))
        if kind == "rt":
            task.unmap("[vvar]")
            assert "leads to was unmapped or moved" in task.refused()
        elif kind == "written":
            content = task.memory[proxy.start]
            task.memory[proxy.start] = content[:0x990] + b"\xcc" + content[0x991:]
            assert "written to" in task.refused()
        elif kind == "part":
            task.vmas.remove(proxy)
            assert "unmapped in part" in task.refused()
        elif kind == "moved":
            task.vmas = [vma for vma in task.vmas if not HERE <= vma.start < HERE + 0x6000]
            task.map(0x10000, 0x12000, READ | EXEC, "", task.memory[proxy.start])
            assert "was moved" in task.refused()
        else:
            mark = next(vma for vma in task.vmas if vma.start == RT_BASE + 0x8000)
            content = task.memory[mark.start]
            task.memory[mark.start] = content[:60] + b"\xcc" + content[61:]
            assert "written over" in task.refused()


def test_a_proxy_that_was_unmapped() -> None:
    """Then it has none; what the proxy led to does not stay behind."""
    task = proxied()
    task.vmas = [vma for vma in task.vmas if not HERE <= vma.start < HERE + 0x6000]
    own = task.look()
    assert own.problems == () and own.vdso == VDSO(()) and own.mark is not None
    assert {vma.name for vma in own.named(task.vmas)} == {RT}


def test_a_copy_of_a_mark_is_none(plain: Task) -> None:
    own = build(decide(vdsos.vdso("6.1", HERE), NATIVE, "pid 7"), RT_BASE).own
    plain.map(0x9000, 0xD000, READ | EXEC, "", own)
    assert find_mark(plain.vmas, plain.read) is None
    assert plain.look().vdso == vdsos.vdso("6.18", HERE)


def test_memory_that_was_droppable_elsewhere() -> None:
    task = proxied(droppable=((0x20000, 0x21000),))
    task.map(0x20000, 0x21000, READ | WRITE, flags="dd mr mw rd wf wr")
    task.map(0x30000, 0x31000, READ | WRITE, flags="dd mr mw rd wf wr")
    named = {vma.start: vma.flags for vma in task.look().named(task.vmas)}
    assert named[0x20000] == "dd dp mr mw rd wf wr" and named[0x30000] == "dd mr mw rd wf wr"


def _placed(restored: RestoredVDSO, vmas: Iterable[VMA]) -> list[tuple[str, object]]:
    program = Program("x")
    restored.place(program, list(vmas))
    return [(op.name, op.args[0]) for op in program.branches[0] if op.name]


def _parked(native: VDSO) -> tuple[Area, ...]:
    low = native.areas[0].start
    return tuple(Area(area.name, 0x10000 + area.start - low, 0x10000 + area.end - low) for area in native.areas)


def test_placed_where_the_task_has_it(plain: Task) -> None:
    verdict = decide(vdsos.vdso("6.18", HERE), NATIVE, "pid 7")
    restored = RestoredVDSO(_parked(NATIVE), verdict, ())
    assert [name for name, _ in _placed(restored, plain.vmas)] == ["mremap"] * 3
    # It has unmapped a part of it meanwhile: neither half a vDSO nor a whole one over its neighbour.
    plain.change("[vvar]", end=HERE + 0x3000)
    with pytest.raises(Failed, match=r"\[vvar\] has 0x3000 bytes, and 0x4000 on this kernel; try again"):
        _placed(RestoredVDSO(_parked(NATIVE), verdict, ()), plain.vmas)
    # And all of it.
    assert _placed(RestoredVDSO(_parked(NATIVE), verdict, ()), plain.vmas[:1]) == [
        ("munmap", 0x10000), ("munmap", 0x14000), ("munmap", 0x16000)
    ]  # fmt: skip


def test_a_proxy_is_made_where_the_verdict_saw_it() -> None:
    verdict = decide(vdsos.vdso("6.1", HERE), NATIVE, "pid 7")
    task = Task()
    task.special(vdsos.areas("6.1", HERE), vdsos.image("6.1"))
    restored = RestoredVDSO(_parked(NATIVE), verdict, ())
    calls = _placed(restored, task.vmas)
    assert [name for name, _ in calls if name != "prctl"] == [
        *["mremap"] * 3, "mmap", "mprotect", "mmap", "mmap", "mprotect"
    ]  # fmt: skip
    program = Program("x")
    restored.withdraw(program)
    assert [op.name for op in program.branches[0]] == ["munmap"] * 3 + ["mremap"] * 3
    moved = Task()
    moved.special(vdsos.areas("6.1", HERE + 0x100000), vdsos.image("6.1"))
    with pytest.raises(Failed, match="has moved its vDSO meanwhile; try again"):
        _placed(restored, moved.vmas)


def test_marks_tell_what_they_were_told() -> None:
    task = proxied(droppable=((0x20000, 0x21000),))
    mark = find_mark(task.vmas, task.read)
    assert mark is not None and mark.droppable == ((0x20000, 0x21000),)
    assert Mark.decode(mark.encode()) == mark

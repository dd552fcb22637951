"""Address spaces made again by the real restorer, compared line by line with what they were made from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine import vdso
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.address_space import compile_fillable, compile_map
from migrate.engine.kinds.vma_read import AddressSpaceReader
from migrate.engine.memory.layout import park
from migrate.engine.program import Program
from tests.kernel.moving import Move, problems, running, seen, tracked
from tests.victims import Victims

KINDS = ("plain", "neighbours", "files", "shared", "advice", "locked", "guards", "sealed", "policy", "heap", "forked")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(bytes(i % 251 for i in range(8 * 4096)))
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_made_again(kind: str, victims: Victims, file: str) -> None:
    with running([victims("areas"), kind, file]) as victim, Move(victim) as move:
        move.map()
        move.fill()
        move.finish()
        assert move.differences() == []


BASE = 0x200000000000  # where `areas` puts things; its steps speak of pages from there
KEPT = (  # pages whose contents stay through each step
    ((0, 64), (100, 104), (108, 116), (204, 216), (300, 308), (400, 416), (500, 508), (600, 608), (800, 802)),
    ((0, 64), (100, 104), (108, 116), (204, 232), (300, 316), (390, 416), (700, 708), (800, 804), (1000, 1004)),
)
VOID = (  # pages that are mapped anew
    ((216, 232), (390, 400), (900, 904), (1000, 1004)),
    ((500, 508), (116, 128), (602, 608), (650, 652)),
)


def test_follows_what_changes(victims: Victims, file: str) -> None:
    """What is void is sent again as a whole; of the rest only what was written or dropped since the last look, as a
    dirty tracker would have it."""
    with running([victims("areas"), "changing", file]) as victim, Move(victim) as move:
        move.map()
        sent = move.fill()
        for step in range(2):
            victim.step()
            void = move.difference()

            def pages(ranges: tuple[tuple[int, int], ...]) -> list[int]:
                return [BASE + page * 4096 for first, last in ranges for page in range(first, last)]

            def is_void(at: int, void: list[tuple[int, int]] = void) -> bool:
                return any(start <= at < end for start, end in void)

            assert not [hex(at) for at in pages(KEPT[step]) if is_void(at)]
            assert [hex(at) for at in pages(VOID[step]) if not is_void(at)] == []
            assert not is_void(move.mm_start_brk())
            sent = move.send_changes({at: page for at, page in sent.items() if not is_void(at)})
        move.finish()
        assert move.differences() == []


def test_heap_under_write_tracking_is_one(victims: Victims, file: str) -> None:
    """An area that brk(2) adds is not merged with a heap that is registered with userfaultfd; it must be afterwards."""
    with running([victims("areas"), "changing", file]) as victim, tracked(victim) as reader:
        assert sum(vma.name == "[heap]" for vma in reader.read()) == 1
        victim.step()
        lines = Path(f"/proc/{victim.pid}/maps").read_text()
        assert lines.count("[heap]") == 2
        again = reader.reread()
        assert sum(vma.name == "[heap]" for vma in again) == 1
        assert reader.problems == []


def test_collision_is_an_error(victims: Victims, file: str) -> None:
    """A VMA over the restorer's own memory fails the program; it does not overwrite the restorer."""
    with running([victims("areas"), "plain", file]) as victim, Move(victim) as move:
        move.map()
        first = next(vma for vma in move.vmas if vma.anonymous and vma.prot == 3)
        clash = replace(first, start=move.restoree.hole.start, end=move.restoree.hole.start + 4096)
        program = Program("clash")
        compile_map(program, [clash], move.restoree.hole)
        assert "mmap: File exists" in move.restoree.try_run(program)
        move.fill()
        move.finish()
        assert move.differences() == []


def test_area_that_a_debugger_wrote_to(victims: Victims, file: str) -> None:
    """Code with a breakpoint has contents of its own, and can be made fillable for them."""
    with running([victims("areas"), "plain", file]) as victim, Move(victim) as move:
        code = next(vma for vma in move.vmas if vma.prot == 5 and "/areas-" in vma.label)
        with open(f"/proc/{victim.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(code.end - 1)
            memory.write(b"\xcc")
        move.map()
        program = Program("fillable")
        compile_fillable(program, [code])
        move.restoree.run(program)
        move.opened = frozenset({code.start})
        move.fill()
        move.finish()
        (was, became) = move.differences()
        assert was[1:] == became[1:].replace("[ac ", "[")


def test_refused_by_name(victims: Victims, file: str) -> None:
    """Each kind that cannot be moved, all at once, with its address and its name."""
    with running([victims("areas"), "refused", file]) as victim:
        found = [str(problem) for problem in problems(victim)]
    expected = (
        (32, "has been deleted"),
        (48, "memory of a device|anon_inode:.perf_event"),
        (64, "memory whose faults the process handles itself"),
        (80, "memory that the process write-protects itself"),
    )
    for page, what in expected:
        place = f"pid {victim.pid} {BASE + page * 4096:x}-"
        assert [line for line in found if line.startswith(place) and re.search(what, line)], (place, what, found)
    assert any("asynchronous I/O context" in line for line in found)
    assert len(found) == len(expected) + 1


def test_file_that_was_replaced(victims: Victims, file: str) -> None:
    """A name that leads to another file now would give another content."""
    with running([victims("areas"), "files", file]) as victim:
        Path(file).rename(file + ".old")
        Path(file).write_bytes(b"another")
        Path(file + ".old").rename(file + ".elsewhere")
        found = [str(problem) for problem in problems(victim)]
        assert found == []  # the kernel knows the new name of the old one
        Path(file + ".elsewhere").unlink()
        found = [str(problem) for problem in problems(victim)]
        assert len(found) == 1 and "file.elsewhere is mapped and has been deleted" in found[0]


def test_what_the_destination_needs(victims: Victims, file: str) -> None:
    with running([victims("areas"), "files", file]) as victim, Proc(victim.pid) as proc:
        reader = AddressSpaceReader(proc)
        reader.read()
        needs = {need.path: need for need in reader.needs()}
        libc = next(need for path, need in needs.items() if path.endswith("/libc.so.6"))
        assert libc.content and not libc.writable and libc.size == Path(libc.path).stat().st_size
        assert needs[file].writable and not needs[file].content
        assert needs[file].mtime_ns == Path(file).stat().st_mtime_ns
        assert needs["/dev/zero"].kind == "device"


def test_locks_of_the_future(victims: Victims, file: str) -> None:
    """mlockall(MCL_FUTURE) shows only in what is mapped next."""
    with running([victims("areas"), "plain", file]) as victim, Move(victim) as move:
        move.lock_flags = "ac lf lo me mr mw rd wr"
        move.map()
        move.fill()
        move.finish()
        program = Program("one more")
        at = park(move.restoree.hole)[1] + (1 << 20)
        program.syscall("mmap", at, 4096, 3, 0x100022, -1, 0, label="an area", expect=at)
        move.restoree.run(program)
        line = next(line for line in seen(move.restoree.pid) if line.startswith(f"{at:x}-"))
        assert " lf lo " in line


@pytest.mark.parametrize("gone", [("[vvar]", "[vvar_vclock]", "[vdso]"), ("[vvar]",)])
def test_without_a_vdso(gone: tuple[str, ...], victims: Victims, file: str) -> None:
    """What the task has unmapped is not there either."""
    with running([victims("areas"), "plain", file]) as victim, Move(victim) as move:
        move.vmas = [vma for vma in move.vmas if vma.name not in gone]
        move.map()
        move.fill()
        move.finish()
        lines = [line[2:] for line in move.differences() if line.startswith("- ")]
        assert len(lines) == len(gone) and all(any(name in line for line in lines) for name in gone)


def test_vdso_is_where_it_was(victims: Victims, file: str) -> None:
    """Read back from where the task expects it, it is the vDSO that the task had."""
    with running([victims("areas"), "plain", file]) as victim, Move(victim) as move:
        move.map()
        move.fill()
        move.finish()
        ours = tuple(vdso.Area(vma.name, vma.start, vma.end) for vma in move.vmas if vma.special)
        program = Program("look at the vdso")
        decode = vdso.collect(program, ours)
        there = decode(move.restoree.run(program))
        with open(f"/proc/{victim.pid}/mem", "rb") as memory:
            area = next(area for area in ours if area.name == vdso.VDSO_NAME)
            memory.seek(area.start)
            here = vdso.VDSO.read(ours, memory.read(area.end - area.start))
        verdict = vdso.decide(here, there, "pid")
        assert verdict.decision is vdso.Decision.REMAP

"""The proxy: the task's own vDSO as ordinary memory, whose functions lead into the destination's.

    [vvar] of the task     memory that reads as zeros: nobody else may come to be here before the task goes home
    [vdso] of the task     the pristine image, and a jump at the entry of each function
    …
    [vvar] … [vdso]        the destination's own, the rt-vdso, in a hole near by
    the mark's area        mark, pristine image, stubs (see `mark`)

Whoever parses the task's vDSO (a later dlopen, a debugger) finds the header, the symbols and the notes that were there.

The rest of the old code stays too. Nobody comes to be in it (see `migrate.engine.tracee.leaving`); somebody who did,
by a context that he has kept, would find data that reads as zeros. That is VDSO_CLOCKMODE_NONE, and with that the old
code makes system calls for all clocks but the coarse ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from migrate.engine.kernel.maps import PAGE
from migrate.engine.program import Buffer, OpKind, Program
from migrate.engine.vdso import stubs
from migrate.engine.vdso.decide import Verdict
from migrate.engine.vdso.image import VDSO, Area
from migrate.engine.vdso.mark import Mark
from migrate.engine.vdso.place import move_op
from migrate.errors import Failed

NAME = "vDSO proxy"  # as PR_SET_VMA_ANON_NAME shows it in maps (CONFIG_ANON_VMA_NAME, Linux 5.17)

_READ, _WRITE, _EXEC = 1, 2, 4  # mmap(2)
_MAP_NEW = 0x2 | 0x20 | 0x100000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_ALIGN = 16


Ranges = tuple[tuple[int, int], ...]


class NoRoom(Failed):
    """There is no place for the rt-vdso within reach of the task's vDSO."""


@dataclass(frozen=True)
class Build:
    """All that a proxy is made of. ``rt``: where the areas of the destination's vDSO go; ``content``: the bytes of the
    task's [vdso] with the jumps; ``area``, ``own``: the mark's area and its bytes."""

    task: VDSO
    rt: tuple[Area, ...]
    content: bytes
    area: Area
    own: bytes

    @property
    def mapped(self) -> tuple[Area, ...]:
        """What is mapped for it, besides the destination's own vDSO."""
        assert self.task.area is not None
        places = [Area("", start, end) for start, end in _joined(self.task.data)]
        return (self.area, *places, self.task.area)


def room_needed(verdict: Verdict, droppable: Ranges = ()) -> int:
    """Bytes, in one piece, for the rt pair and the mark's area."""
    own = len(Mark(0, 0, verdict.task, verdict.there.areas, 0, droppable).encode())
    own += sum(_up(len(entry.stub), _ALIGN) for entry in verdict.entries) + _ALIGN
    return _span(verdict.there) + _up(own, PAGE)


def build(verdict: Verdict, base: int, droppable: Ranges = ()) -> Build:
    """``base``: where there are `room_needed` bytes; ``droppable``: see `Mark`. Raises NoRoom: too far away for the
    jumps that fit."""
    task, there = verdict.task, verdict.there
    assert task.area is not None
    low = min((area.start for area in there.areas), default=0)
    rt = tuple(Area(area.name, base + area.start - low, base + area.end - low) for area in there.areas)
    start = base + _span(there)
    area = Area("", start, base + room_needed(verdict, droppable))
    mark = Mark(area.start, area.size, task, rt, 0, droppable)
    stubs_at = _up(len(mark.encode()), _ALIGN)
    code = bytearray()
    content = bytearray(task.image)
    rt_vdso = VDSO(rt).area
    for entry in verdict.entries:
        if entry.own is not None:
            content[entry.offset : entry.offset + len(entry.own)] = entry.own
            continue
        if entry.there is not None:
            assert rt_vdso is not None
            target = rt_vdso.start + entry.there
        else:
            target = area.start + stubs_at + len(code)
            code += entry.stub + b"\xcc" * (_up(len(entry.stub), _ALIGN) - len(entry.stub))
        try:
            jump = stubs.jump(task.area.start + entry.offset, target, entry.room, task.compat)
        except ValueError as error:
            raise NoRoom(f"no proxy for {entry.name} at {base:x}: {error}") from None
        content[entry.offset : entry.offset + len(jump)] = jump
    mark = replace(mark, checksum=zlib.crc32(content))
    return Build(task, rt, bytes(content), area, mark.encode().ljust(stubs_at, b"\0") + bytes(code))


def proxy_ops(program: Program, parked: Sequence[Area], made: Build) -> None:
    """Make it. ``parked``: where the destination's own waits."""
    rt = {area.name: area.start for area in made.rt}
    for area in parked:
        if area.name in rt:
            move_op(program, area, rt[area.name], f"{area.name} of the rt-vdso to {rt[area.name]:x}")
        else:
            program.syscall("munmap", area.start, area.size, label=f"{area.name}, which is not used")
    name = program.string(NAME)
    mark, *places, proxy = made.mapped
    _map(program, mark, made.own, _READ | _EXEC, "the mark of the vDSO", name)
    for place in places:
        _map(program, place, b"", _READ, "the place of the task's vvar", name)
    _map(program, proxy, made.content, _READ | _EXEC, "the proxy of the vDSO", name)


def _map(program: Program, area: Area, content: bytes, prot: int, label: str, name: Buffer) -> None:
    first = _READ | _WRITE if content else prot
    program.syscall("mmap", area.start, area.size, first, _MAP_NEW, -1, 0, label=label, expect=area.start)
    if content:
        program.op(OpKind.COPY, area.start, program.data(content), len(content), label=label)
        program.syscall("mprotect", area.start, area.size, prot, label=label)
    # Only for people, and so that it never merges with a neighbour: a kernel that cannot do it, does not.
    args = (_PR_SET_VMA, _PR_SET_VMA_ANON_NAME, area.start, area.size, name)
    program.syscall("prctl", *args, label=f"name of {label}", ignore=True)


def choose_base(
    used: Iterable[tuple[int, int]], grows: Iterable[tuple[int, int]], near: Area, size: int, compat: bool = False
) -> int:
    """Where the rt pair goes: ``size`` free bytes, best within reach of a short jump from ``near``.

    ``used``: all that the task has mapped; ``grows``: where its stacks and its heap may want to grow. The highest gap:
    that is above the stack, where nothing is ever mapped without being told to, or between the stack and the libraries;
    mmap(2) looks for room from the latter downwards. At its lower end, for it is its upper end that a stack comes near
    to. ``compat``: below 4 GiB; where there is little left of that, nothing is kept for what may want to grow. Raises
    NoRoom.
    """
    used = list(used)
    taken = [*used, *grows]
    whole = size + 2 * PAGE  # a page on each side, so that what is mapped next to it later does not merge with it
    if compat:
        for each in (taken, used):
            free = [gap for gap in _gaps(each, _LOWEST, (1 << 32) - PAGE) if gap[1] - gap[0] >= whole]
            if free:
                return free[-1][0] + PAGE
        raise NoRoom(f"no {size:#x} free bytes below 4 GiB")
    for low, high in ((near.end - stubs.REACH, near.start + stubs.REACH), (_LOWEST, _HIGHEST)):
        free = [gap for gap in _gaps(taken, max(low, _LOWEST), min(high, _HIGHEST)) if gap[1] - gap[0] >= whole]
        if free:
            return free[-1][0] + PAGE
    raise NoRoom(f"no {size:#x} free bytes in the address space")


_LOWEST, _HIGHEST = 1 << 20, (1 << 47) - PAGE


def _gaps(taken: Iterable[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    found, at = [], low
    for start, end in sorted(taken):
        if start > at:
            found.append((at, min(start, high)))
        at = max(at, end)
    found.append((at, high))
    return [(start, end) for start, end in found if start < end]


def _joined(areas: Iterable[Area]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for area in sorted(areas, key=lambda area: area.start):
        if found and found[-1][1] == area.start:
            found[-1] = (found[-1][0], area.end)
        else:
            found.append((area.start, area.end))
    return found


def _span(vdso: VDSO) -> int:
    """Bytes from the lowest to the highest address of its areas."""
    if not vdso.areas:
        return 0
    return max(area.end for area in vdso.areas) - min(area.start for area in vdso.areas)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

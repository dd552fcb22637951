"""Where no thread of a process may be when it is frozen: in the code of a vDSO."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from agents import ia32
from migrate.engine import vdso
from migrate.engine.kernel.maps import maps
from migrate.engine.kinds import own_vdso
from migrate.engine.program import Program
from migrate.engine.tracee.leaving import Code
from migrate.pie import local


@cache
def native_vdso(compat: bool = False) -> vdso.VDSO:
    """That of this process, and so of every other that this kernel has started; or of one of 32 bits. It stays what it
    is."""
    if compat:
        return vdso.of_ia32(ia32.look())
    program = Program("our own vDSO")
    decode = vdso.collect(program, vdso.areas(maps(Path("/proc/self/maps").read_text())))
    return decode(local.run(program.link()))


@lru_cache(maxsize=4)
def _unwinder(image: bytes) -> vdso.Unwinder:
    # Of a tree of processes all have the same, and one that is born while they stand still is not to wait for it.
    return vdso.Unwinder(vdso.VDSO((), (), image))


def code_of(own: own_vdso.OwnVDSO, compat: bool = False) -> Code:
    """That of a vDSO in the process: the task's, and what its proxy leads to. ``compat``: it is of 32 bits, and where
    that returns to cannot be told."""
    found = own.code(native_vdso(compat))
    ranges: list[tuple[int, int]] = []
    for area, image in found:
        ranges += _without_the_kernels(area, image) if area == own.vdso.area else [(area.start, area.end)]
    parts = [] if compat else [(area, _unwinder(image.image)) for area, image in found]

    def inside(address: int) -> bool:
        return any(start <= address < end for start, end in ranges)

    def slot(rip: int, rsp: int, rbp: int, word: Callable[[int], int]) -> int | None:
        area, unwinder = next(part for part in parts if part[0].start <= rip < part[0].end)
        return unwinder.slot(area.start, rip, rsp, rbp, inside, word)

    tails = tuple((area.start + len(image.image), area.end) for area, image in found if image.image)
    return Code(tuple(ranges), own.entries, slot, tails)


def _without_the_kernels(area: vdso.Area, image: vdso.VDSO) -> list[tuple[int, int]]:
    """Threads of 32 bits that sleep in a system call are in the vDSO, and handlers return by way of it. That code reads
    nothing, and is in its place in a proxy as well."""
    ranges, at = [], area.start
    for kept in sorted(image.kernel_entries, key=lambda function: function.offset):
        ranges.append((at, area.start + kept.offset))
        at = area.start + kept.offset + kept.size
    return [*ranges, (at, area.end)]


def returns_of_handlers(own: own_vdso.OwnVDSO) -> dict[int, int]:
    """Addresses in the vDSO that the proxy of a task of 32 bits leads to, which handlers return to (a frame of 32 bits
    has such an address, where one of 64 bits has the task's own), and the same in the task's own vDSO."""
    if own.mark is None or own.vdso.area is None:
        return {}
    rt = vdso.VDSO(own.mark.rt).area
    here = {function.name: own.vdso.area.start + function.offset for function in own.vdso.kernel_entries}
    native = native_vdso(compat=True).kernel_entries if rt is not None else ()
    return {rt.start + each.offset: here[each.name] for each in native if rt is not None and each.name in here}

"""Where no thread of a process may be when it is frozen: in the code of a vDSO."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from migrate.engine import vdso
from migrate.engine.kernel.maps import maps
from migrate.engine.kinds import own_vdso
from migrate.engine.program import Program
from migrate.engine.tracee.leaving import Code
from migrate.pie import local


@cache
def native_vdso() -> vdso.VDSO:
    """That of this process, and so of every other that this kernel has started. It stays what it is."""
    program = Program("our own vDSO")
    decode = vdso.collect(program, vdso.areas(maps(Path("/proc/self/maps").read_text())))
    return decode(local.run(program.link()))


@lru_cache(maxsize=4)
def _unwinder(image: bytes) -> vdso.Unwinder:
    # Of a tree of processes all have the same, and one that is born while they stand still is not to wait for it.
    return vdso.Unwinder(vdso.VDSO((), (), image))


def code_of(own: own_vdso.OwnVDSO) -> Code:
    """That of a vDSO in the process: the task's, and what its proxy leads to."""
    native = native_vdso()
    parts = [(area, _unwinder(image.image)) for area, image in own.code(native)]
    ranges = tuple((area.start, area.end) for area, _ in parts)

    def inside(address: int) -> bool:
        return any(start <= address < end for start, end in ranges)

    def slot(rip: int, rsp: int, rbp: int, word: Callable[[int], int]) -> int | None:
        area, unwinder = next(part for part in parts if part[0].start <= rip < part[0].end)
        return unwinder.slot(area.start, rip, rsp, rbp, inside, word)

    tails = tuple((a.start + len(image.image), a.end) for a, image in own.code(native) if image.image)
    return Code(ranges, own.entries, slot, tails)

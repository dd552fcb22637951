"""The vDSO: code of the kernel that every process has mapped, and that the C library calls (vdso(7)).

Another kernel, another vDSO: other functions at other offsets. A task keeps calling the addresses it has resolved, so
on the destination the same functions must stand at the same addresses.
"""

from __future__ import annotations

import enum
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, SymbolTableSection

from migrate.engine.kernel.maps import Mapping
from migrate.engine.program import OpKind, Program, Results
from migrate.errors import Problem

VDSO_NAME = "[vdso]"
NAMES = ("[vvar]", "[vvar_vclock]", VDSO_NAME)  # the second apart since 6.13 ("x86/vdso: Split virtual clock pages…")

_MREMAP_MOVE = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED


@dataclass(frozen=True)
class Area:
    """One of the kernel's mappings: where it is."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class VDSO:
    """The vDSO of a process. Without areas: it has none (vdso=0, or it has unmapped it)."""

    areas: tuple[Area, ...]
    symbols: tuple[tuple[str, int], ...] = ()  # every exported function: name, offset; sorted
    build_id: str = ""

    @classmethod
    def read(cls, areas: tuple[Area, ...], image: bytes) -> VDSO:
        """``image``: the bytes of [vdso]; empty if there is none. Raises elftools' ELFError for what is no ELF file."""
        if not image:
            return cls(areas)
        symbols, build_id = set(), ""
        with ELFFile(io.BytesIO(image)) as elf:
            for section in elf.iter_sections():
                if isinstance(section, SymbolTableSection):
                    for symbol in section.iter_symbols():
                        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["type"] != "STT_SECTION":
                            symbols.add((symbol.name, int(symbol["st_value"])))
                elif isinstance(section, NoteSection):
                    for note in section.iter_notes():
                        if note["n_type"] == "NT_GNU_BUILD_ID":
                            build_id = note["n_desc"]
        return cls(areas, tuple(sorted(symbols)), build_id)

    @property
    def shape(self) -> tuple[tuple[str, int, int], ...]:
        """The areas relative to the lowest: its code reaches vvar by distance."""
        low = min((area.start for area in self.areas), default=0)
        return tuple((area.name, area.start - low, area.end - low) for area in self.areas)


def areas(mappings: Iterable[Mapping]) -> tuple[Area, ...]:
    """Those of a process, lowest first."""
    return tuple(Area(m.path, m.start, m.end) for m in mappings if m.path in NAMES)


def collect(program: Program, found: tuple[Area, ...]) -> Callable[[Results], VDSO]:
    """Have the process that runs the program copy its vDSO out. The decoder raises as `VDSO.read`."""
    area = next((area for area in found if area.name == VDSO_NAME), None)
    if area is None:
        return lambda results: VDSO(found)
    size = area.end - area.start
    room = program.space(size)
    program.op(OpKind.COPY, room, area.start, size, label="the vDSO")
    return lambda results: VDSO.read(found, results.bytes(room))


class Decision(enum.Enum):
    """What becomes of the vDSO."""

    NONE = "none"  # the task has none, and gets none
    SAME = "same"  # the destination's own is moved to where the task expects it
    DIFFERENT = "different"


@dataclass(frozen=True)
class Verdict:
    """``exact``: it is the same build, so that even a thread in the middle of a function of it can go on."""

    decision: Decision
    exact: bool = False
    problem: Problem | None = None


def decide(task: VDSO, there: VDSO, where: str) -> Verdict:
    """``there``: that of a fresh process of the destination. Symbols count, not bytes: the kernel patches its vDSO to
    the CPU when it boots (apply_alternatives())."""
    if not task.areas:
        return Verdict(Decision.NONE, exact=True)
    differences = []
    if task.shape != there.shape:
        differences.append(f"areas {_shown(task)} here, {_shown(there)} there")
    if task.symbols != there.symbols:
        ours, theirs = dict(task.symbols), dict(there.symbols)
        names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        differences.append(f"{len(names)} functions missing or elsewhere: {', '.join(names[:6])}")
    if not differences:
        return Verdict(Decision.SAME, exact=bool(task.build_id) and task.build_id == there.build_id)
    problem = Problem(where, "the vDSO differs: " + "; ".join(differences), "move it to a host with the same kernel")
    return Verdict(Decision.DIFFERENT, problem=problem)


def _shown(vdso: VDSO) -> str:
    return " ".join(f"{name} {end - start:#x} at +{start:#x}" for name, start, end in vdso.shape) or "none"


def park_ops(program: Program, found: tuple[Area, ...], start: int, end: int) -> tuple[Area, ...]:
    """Move what the process has to free room at ``start``; where everything is then.

    In two steps to its final place, this being the first, because source and target may overlap, and mremap(2)
    refuses that. The kernel notes where it goes (vdso_mremap(), arch/x86/entry/vdso/vma.c).
    """
    parked = []
    for area in found:
        size = area.end - area.start
        if start + size > end:
            raise ValueError(f"no room to park {area.name}, {size} bytes")
        label = f"put {area.name} aside"
        program.syscall("mremap", area.start, size, size, _MREMAP_MOVE, start, label=label, expect=start)
        parked.append(Area(area.name, start, start + size))
        start += size
    return tuple(parked)


def place_ops(program: Program, parked: tuple[Area, ...], wanted: tuple[Area, ...]) -> None:
    """Move each to where the task had it, and remove what the task did not have."""
    targets = {area.name: area for area in wanted}
    if missing := targets.keys() - {area.name for area in parked}:
        raise ValueError(f"this kernel has no {', '.join(sorted(missing))}")
    for area in parked:
        size = area.end - area.start
        target = targets.get(area.name)
        if target is None:
            program.syscall("munmap", area.start, size, label=f"{area.name}, which the task does not have")
        else:
            program.syscall(
                *("mremap", area.start, size, size, _MREMAP_MOVE, target.start),
                label=f"{area.name} to {target.start:x}",
                expect=target.start,
            )


"""What a vDSO is: where the kernel's mappings are, and the table of functions in its ELF image (vdso(7))."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.program import OpKind, Program, Results
from migrate.errors import Failed

VDSO_NAME = "[vdso]"
NAMES = ("[vvar]", "[vvar_vclock]", VDSO_NAME)  # the second apart since 6.13 ("x86/vdso: Split virtual clock pages…")

_CODE = ("STT_FUNC", "STT_NOTYPE", "STT_LOOS")  # assembly may leave the type out; STT_LOOS is STT_GNU_IFUNC
_ELF_HEADER = 64


class NoVDSO(Failed):
    """What is mapped as [vdso] is not an ELF image."""


@dataclass(frozen=True)
class Area:
    """One of the kernel's mappings: where it is."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Function:
    """An exported function. Aliases are functions of their own, at the same offset."""

    name: str
    offset: int  # bytes from the start of [vdso]
    size: int  # bytes; 0 where the symbol does not say
    version: str  # "LINUX_2.6"


@dataclass(frozen=True)
class VDSO:
    """The vDSO of a process. Without the area [vdso] it has none (vdso=0, or it has unmapped it).

    ``functions``: every exported one, sorted by name. ``image``: the ELF file, without what follows in its last page.
    """

    areas: tuple[Area, ...]
    functions: tuple[Function, ...] = ()
    image: bytes = b""

    @classmethod
    def read(cls, areas: tuple[Area, ...], content: bytes) -> VDSO:
        """``content``: the bytes of [vdso]; empty if there is none. Raises NoVDSO."""
        if not content:
            return cls(areas)
        try:
            image = content[: _file_size(content)]
            return cls(areas, _functions(image), image)
        except (ELFError, ValueError, KeyError) as error:  # pyelftools raises all of these for nonsense
            raise NoVDSO(f"the vDSO is no ELF image that can be read: {error or type(error).__name__}") from error

    @property
    def area(self) -> Area | None:
        """[vdso] itself."""
        return next((area for area in self.areas if area.name == VDSO_NAME), None)

    @property
    def compat(self) -> bool:
        """It is of 32 bits."""
        return self.image[4:5] == b"\1"

    @property
    def kernel_entries(self) -> tuple[Function, ...]:
        """Of one of 32 bits: the way into the kernel, and two ways out of signal handlers. They read no data."""
        return tuple(function for function in self.functions if function.name.startswith("__kernel_"))

    @property
    def data(self) -> tuple[Area, ...]:
        """The kernel's data, which the code reads by distance."""
        return tuple(area for area in self.areas if area.name != VDSO_NAME)

    @property
    def shape(self) -> tuple[tuple[str, int, int], ...]:
        """The areas relative to the lowest."""
        low = min((area.start for area in self.areas), default=0)
        return tuple((area.name, area.start - low, area.end - low) for area in self.areas)

    @property
    def shown(self) -> str:
        """The areas in words: ``[vvar] 0x4000, [vdso] 0x2000 at +0x4000``."""
        parts = [f"{name} {end - start:#x} at +{start:#x}" for name, start, end in self.shape]
        return ", ".join(parts) or "none"

    def entries(self) -> dict[int, tuple[Function, ...]]:
        """The functions by offset: those at one are aliases, the kernel's own name (``__vdso_…``) first."""
        found: dict[int, list[Function]] = {}
        for function in sorted(self.functions, key=lambda f: (f.offset, not f.name.startswith("__"), f.name)):
            found.setdefault(function.offset, []).append(function)
        return {offset: tuple(aliases) for offset, aliases in found.items()}


def areas(mappings: Iterable[Mapping]) -> tuple[Area, ...]:
    """Those of a process, lowest first."""
    return tuple(Area(m.path, m.start, m.end) for m in mappings if m.path in NAMES)


def of_ia32(told: tuple[str, bytes] | None) -> VDSO:
    """That of processes of 32 bits on a host, as `agents.ia32.look` tells of it. Raises NoVDSO."""
    lines, content = told or ("", b"")
    return VDSO.read(areas(maps(lines)), content)


def collect(program: Program, found: tuple[Area, ...]) -> Callable[[Results], VDSO]:
    """Have the process that runs the program copy its vDSO out. The decoder raises as `VDSO.read`."""
    area = VDSO(found).area
    if area is None:
        return lambda results: VDSO(found)
    room = program.space(area.size)
    program.op(OpKind.COPY, room, area.start, area.size, label="the vDSO")
    return lambda results: VDSO.read(found, results.bytes(room))


def _file_size(content: bytes) -> int:
    """Bytes of the ELF file: its section headers come last. Behind it are zeros, and code that tracers put there."""
    if len(content) < _ELF_HEADER or content[:6] not in (b"\x7fELF\1\1", b"\x7fELF\2\1"):
        raise ValueError("no ELF header")
    # e_shoff, e_shentsize, e_shnum
    sections_at, each, count = struct.unpack_from("<40xQ10xHH" if content[4] == 2 else "<32xI10xHH", content)
    size = int(sections_at + each * count)
    if not _ELF_HEADER < size <= len(content):
        raise ValueError(f"section headers up to {size:#x} in {len(content):#x} bytes")
    return size


@lru_cache(maxsize=4)  # many processes have the same
def _functions(image: bytes) -> tuple[Function, ...]:
    found = set()
    with ELFFile(io.BytesIO(image)) as elf:
        versions = _versions(elf)
        for section in elf.iter_sections():
            if not isinstance(section, SymbolTableSection) or section["sh_type"] != "SHT_DYNSYM":
                continue
            for index, symbol in enumerate(section.iter_symbols()):
                place, kind, bind = symbol["st_shndx"], symbol["st_info"]["type"], symbol["st_info"]["bind"]
                if isinstance(place, int) and kind in _CODE and bind != "STB_LOCAL" and symbol.name:
                    offset, size = int(symbol["st_value"]), int(symbol["st_size"])
                    if offset + size > len(image):
                        raise ValueError(f"{symbol.name} at {offset:#x} is outside of it")
                    found.add(Function(symbol.name, offset, size, versions.get(index, "")))
    return tuple(sorted(found, key=lambda function: function.name))


def _versions(elf: ELFFile) -> dict[int, str]:
    """The version of each symbol, by its index."""
    names: dict[int, str] = {}
    indices: dict[int, int] = {}
    for section in elf.iter_sections():
        if isinstance(section, GNUVerDefSection):
            for definition, auxiliaries in section.iter_versions():
                names[int(definition["vd_ndx"])] = next(auxiliaries).name
        elif isinstance(section, GNUVerSymSection):
            for index, symbol in enumerate(section.iter_symbols()):
                if isinstance(symbol["ndx"], int):
                    indices[index] = symbol["ndx"] & 0x7FFF  # without VERSYM_HIDDEN
    return {index: names[ndx] for index, ndx in indices.items() if ndx in names}

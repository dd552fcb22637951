"""What the CPU shows to user space, and whether another one shows no less.

A program that found AVX-512 at its start goes on using it after a move. So the destination must have every feature of
the source, and keep the vector state in the same places (Intel SDM vol. 1, ch. 13; CPUID leaf 0xD), since the XSAVE
image is carried over as it is. Both sides are asked by the same program of CPUID and XGETBV ops.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from migrate.engine.program import OpKind, Program, Results
from migrate.errors import Problem
from migrate.pie import local

_EAX, _EBX, _ECX, _EDX = range(4)
# (leaf, subleaf, register): names by bit, as /proc/cpuinfo spells them; only what user space can see or use
_FEATURES: dict[tuple[int, int, int], dict[int, str]] = {
    (1, 0, _ECX): {
        0: "sse3", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2", 22: "movbe",
        23: "popcnt", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c", 30: "rdrand",
    },
    (1, 0, _EDX): {
        0: "fpu", 4: "tsc", 8: "cx8", 11: "sep", 15: "cmov", 19: "clflush", 23: "mmx", 24: "fxsr", 25: "sse",
        26: "sse2",
    },
    (7, 0, _EBX): {
        0: "fsgsbase", 3: "bmi1", 4: "hle", 5: "avx2", 8: "bmi2", 9: "erms", 11: "rtm", 16: "avx512f", 17: "avx512dq",
        18: "rdseed", 19: "adx", 21: "avx512ifma", 23: "clflushopt", 24: "clwb", 26: "avx512pf", 27: "avx512er",
        28: "avx512cd", 29: "sha_ni", 30: "avx512bw", 31: "avx512vl",
    },
    (7, 0, _ECX): {
        0: "prefetchwt1", 1: "avx512vbmi", 4: "ospke", 5: "waitpkg", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes",
        10: "vpclmulqdq", 11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq", 22: "rdpid",
        25: "cldemote", 27: "movdiri", 28: "movdir64b",
    },
    (7, 0, _EDX): {
        2: "avx512_4vnniw", 3: "avx512_4fmaps", 4: "fsrm", 8: "avx512_vp2intersect", 14: "serialize", 22: "amx_bf16",
        23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8",
    },
    (7, 1, _EAX): {
        0: "sha512", 1: "sm3", 2: "sm4", 4: "avx_vnni", 5: "avx512_bf16", 7: "cmpccxadd", 10: "fzrm", 11: "fsrs",
        12: "fsrc", 21: "amx_fp16", 23: "avx_ifma",
    },
    (7, 1, _EDX): {4: "avx_vnni_int8", 5: "avx_ne_convert", 8: "amx_complex", 10: "avx_vnni_int16", 14: "prefetchi"},
    (0xD, 1, _EAX): {0: "xsaveopt", 1: "xsavec", 2: "xgetbv1"},
    (0x80000001, 0, _ECX): {
        0: "lahf_lm", 5: "abm", 6: "sse4a", 7: "misalignsse", 8: "3dnowprefetch", 11: "xop", 16: "fma4", 21: "tbm",
        29: "mwaitx",
    },
    (0x80000001, 0, _EDX): {22: "mmxext", 27: "rdtscp", 29: "lm", 30: "3dnowext", 31: "3dnow"},
    (0x80000008, 0, _EBX): {0: "clzero", 4: "rdpru", 9: "wbnoinvd"},
}  # fmt: skip
Check = Literal["all", "xstate", "off"]
"""What has to be there: everything, or the registers' state, or nothing."""
_XSTATE_BV = 512  # offset in an XSAVE image of the components that are not in their initial state
_LEGACY = 3  # x87 and SSE, which have fixed places
XTILEDATA = 18  # state component of the AMX tiles
_COMPONENTS = range(2, 20)  # state components with an area of their own


@dataclass(frozen=True)
class Cpu:
    """Features by name; XCR0; the XSAVE area's size in bytes and where each state component lies in it."""

    features: tuple[str, ...]
    xcr0: int
    xsave_size: int
    components: tuple[tuple[int, int, int], ...]  # (number, offset, size)

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results], Cpu]:
        """Ask the CPU that runs the program."""

        def ask(leaf: int, subleaf: int) -> Callable[[Results], tuple[int, ...]]:
            out = program.space(16)
            program.op(OpKind.CPUID, leaf, subleaf, out, label=f"CPUID {leaf:#x}.{subleaf}")
            return lambda results: struct.unpack("<4I", results.bytes(out))

        highest = {0: ask(0, 0), 0x80000000: ask(0x80000000, 0)}
        leaves = {(leaf, sub): ask(leaf, sub) for leaf, sub, _ in _FEATURES}
        area = ask(0xD, 0)
        components = {number: ask(0xD, number) for number in _COMPONENTS}
        xcr0 = program.op(OpKind.XGETBV, 0, label="XCR0")

        def decode(results: Results) -> Cpu:
            tops = {base: get(results)[_EAX] for base, get in highest.items()}
            names = []
            for (leaf, sub, register), bits in _FEATURES.items():
                # A leaf beyond the highest answers with the data of another one (SDM vol. 2A, CPUID).
                if leaf > tops[leaf & 0x80000000]:
                    continue
                value = leaves[leaf, sub](results)[register]
                names += [name for bit, name in bits.items() if value >> bit & 1]
            enabled = results.of(xcr0)  # 0: no XSAVE, or a kernel that does not use it
            places = []
            for number, get in components.items():
                size, offset = get(results)[:2]
                if enabled >> number & 1:
                    places.append((number, offset, size))
            size = area(results)[_EBX] if enabled else 0
            return cls(tuple(names), enabled, size, tuple(places))

        return decode

    def missing(self, other: Cpu, check: Check = "all") -> tuple[list[Problem], list[str]]:
        """What ``other``, the destination's, lacks of this one: problems, and what ``check`` makes warnings of."""
        without = [where for where, cpu in (("this CPU", self), ("destination CPU", other)) if not cpu.xcr0]
        blind = [Problem(where, "has no XSAVE, by which registers are carried over") for where in without]
        state = [] if blind else self._missing_state(other)
        features = []
        if lacking := [name for name in self.features if name not in other.features]:
            advice = "choose a host whose CPU has what this one has, or see --cpu-check"
            features.append(Problem("destination CPU", "lacks " + " ".join(lacking), advice))
        problems = [*blind, *(features if check == "all" else ()), *(state if check != "off" else ())]
        warnings = []
        if check != "all":
            warnings += [f"{problem}: the process ends by SIGILL if it uses them" for problem in map(_fact, features)]
        if check == "off":
            warnings += [f"{problem}: what the process has in them is lost" for problem in map(_fact, state)]
        return problems, warnings

    def _missing_state(self, other: Cpu) -> list[Problem]:
        problems = []
        state = self.xcr0 & ~other.xcr0
        if state:
            names = ", ".join(str(bit) for bit in range(64) if state >> bit & 1)
            problems.append(Problem("destination kernel", f"does not enable XSAVE state components {names}"))
        theirs = {number: (offset, size) for number, offset, size in other.components}
        moved = [n for n, offset, size in self.components if n in theirs and theirs[n] != (offset, size)]
        if moved:
            problems.append(
                Problem("destination CPU", f"keeps XSAVE components {', '.join(map(str, moved))} at other offsets")
            )
        return problems

    def carrier(self, other: Cpu) -> Carrier:
        """How XSAVE images of this one are made to fit ``other``."""
        theirs = {number: (offset, size) for number, offset, size in other.components}
        both = [(n, offset, size) for n, offset, size in self.components if theirs.get(n, (0, 0))[1] == size]
        alike = not self.xcr0 & ~other.xcr0 and all(theirs[n][0] == offset for n, offset, _ in both)
        kept = sum(1 << n for n, _, _ in both) | _LEGACY
        pieces = () if alike else tuple((offset, theirs[n][0], size) for n, offset, size in both)
        return Carrier(other.xsave_size, kept & other.xcr0, pieces)


def _fact(problem: Problem) -> str:
    return f"{problem.where} {problem.what}"


@dataclass(frozen=True)
class Carrier:
    """Makes XSAVE images fit another CPU: ``size`` bytes, of the state components in ``kept``. ``pieces``: where each
    is and where it goes, and how long it is; none where all of them stay in their places."""

    size: int
    kept: int
    pieces: tuple[tuple[int, int, int], ...] = ()

    def components(self, xsave: bytes) -> int:
        """The state components (XSTATE_BV) that the image has and the destination can take."""
        return int.from_bytes(xsave[_XSTATE_BV : _XSTATE_BV + 8], "little") & self.kept

    def fit(self, xsave: bytes) -> bytes:
        """The image there. Components that only the destination has start out as reset; those that it lacks are left
        out, which `Cpu.missing` has told."""
        if not self.pieces:
            return xsave[: self.size].ljust(self.size, b"\0")
        area = bytearray(self.size)
        area[:_XSTATE_BV] = xsave[:_XSTATE_BV]
        area[_XSTATE_BV : _XSTATE_BV + 8] = self.components(xsave).to_bytes(8, "little")
        for here, there, size in self.pieces:
            area[there : there + size] = xsave[here : here + size].ljust(size, b"\0")
        return bytes(area)


def own_cpu() -> Cpu:
    """That of this machine."""
    program = Program("the CPU")
    decode = Cpu.collect(program)
    return decode(local.run(program.link()))

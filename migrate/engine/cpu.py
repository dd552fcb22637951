"""What the CPU shows to user space, and whether another one shows no less.

A program that found AVX-512 at its start goes on using it after a move. So the destination must have every feature of
the source, and keep the vector state in the same places (Intel SDM vol. 1, ch. 13; CPUID leaf 0xD), since the XSAVE
image is carried over as it is. Both sides are asked by the same program of CPUID and XGETBV ops.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from migrate.engine.program import OpKind, Program, Results
from migrate.errors import Problem

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
            enabled = results.of(xcr0)
            places = []
            for number, get in components.items():
                size, offset = get(results)[:2]
                if enabled >> number & 1:
                    places.append((number, offset, size))
            return cls(tuple(names), enabled, area(results)[_EBX], tuple(places))

        return decode

    def missing(self, other: Cpu) -> list[Problem]:
        """What ``other``, the destination's, lacks of this one."""
        problems = []
        lacking = [name for name in self.features if name not in other.features]
        if lacking:
            problems.append(
                Problem(
                    "destination CPU", "lacks " + " ".join(lacking), "choose a host whose CPU has what this one has"
                )
            )
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


def fit(xsave: bytes, size: int) -> bytes:
    """The XSAVE image in an area of ``size`` bytes: components that only the destination has start out as reset."""
    return xsave[:size].ljust(size, b"\0")

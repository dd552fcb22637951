"""Compiles the freestanding C to `blob.bin`: one flat, position-independent piece of code."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SOURCES = ("head.S", "interpreter.c", "restorer.c", "lz4.c", "crc32c.c")
FLAGS = (
    *(
        "-Os",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffreestanding",
        "-nostdlib",
        "-fPIE",
        "-mgeneral-regs-only",
    ),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-fno-builtin"),
    *("-fno-jump-tables", "-fno-tree-loop-distribute-patterns", "-mno-red-zone", "-fvisibility=hidden"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments", "-static"),
)


def build(target: Path = HERE / "blob.bin", compiler: str = "gcc") -> bytes:
    """Compile, link, check that nothing in it needs a loader, and write the code to ``target``."""
    with tempfile.TemporaryDirectory() as scratch:
        elf = Path(scratch, "blob.elf")
        script = HERE / "blob.lds"
        sources = [str(HERE / name) for name in SOURCES]
        subprocess.run([compiler, *FLAGS, "-T", str(script), "-o", str(elf), *sources], check=True)
        with elf.open("rb") as file:
            linked = ELFFile(file)
            for name in (".got", ".data", ".bss"):
                section = linked.get_section_by_name(name)
                if section is not None and section["sh_size"]:
                    raise ValueError(f"{name} of the blob has {section['sh_size']} bytes; it must have none")
            text = linked.get_section_by_name(".text")
            assert text is not None
            code: bytes = text.data()
    if not target.exists() or target.read_bytes() != code:
        target.write_bytes(code)
    return code


class BuildBlob(build_py):
    """`pip install` compiles the blob beside its sources, from where it is packaged."""

    def run(self) -> None:
        build()
        super().run()


if __name__ == "__main__":
    print(f"blob.bin: {len(build())} bytes")

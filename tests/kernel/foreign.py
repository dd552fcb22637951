"""Becoming a process with the vDSO of another kernel, in the words of tests/victims/foreign.c."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from migrate.engine.outside import native_vdso
from migrate.engine.vdso.proxy import Build
from tests.unit import vdsos
from tests.victims import Victims

NEAR, FAR = vdsos.BASE - (64 << 20), 0x1000_0000_0000


def plan(directory: Path, made: Build) -> list[str]:
    """The lines that make it."""
    (directory / "proxy").write_bytes(made.content)
    (directory / "own").write_bytes(made.own)
    rt = {area.name: area.start for area in made.rt}
    lines = [f"move {a.name} {rt[a.name]:x}" if a.name in rt else f"drop {a.name}" for a in native_vdso().areas]
    mark, *places, proxy = made.mapped
    lines.append(f"map {mark.start:x} {mark.size:x} 5 {directory}/own")
    lines += [f"map {place.start:x} {place.size:x} 1 -" for place in places]
    return [*lines, f"map {proxy.start:x} {proxy.size:x} 5 {directory}/proxy"]


def carry_out(victims: Victims, directory: Path, lines: Sequence[str]) -> str:
    """What it says ahead of its verdict; an AssertionError when that is none."""
    (directory / "plan").write_text("\n".join(lines) + "\n")
    done = subprocess.run([victims("foreign"), str(directory / "plan")], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("pass\n") and not done.stderr, f"{done}\n" + "\n".join(lines)
    return done.stdout.removesuffix("pass\n")

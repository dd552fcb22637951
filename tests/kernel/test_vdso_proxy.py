"""Proxies of five kernels' vDSOs, made in a process of this one, and called at the addresses of theirs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from migrate.engine import vdso
from migrate.engine.kernel.maps import maps
from migrate.engine.program import Program
from migrate.engine.vdso import VDSO, Decision, decide
from migrate.engine.vdso.proxy import Build
from migrate.engine.vdso.stubs import bare
from migrate.pie import local
from tests.unit import vdsos
from tests.victims import Victims

NEAR, FAR = vdsos.BASE - (64 << 20), 0x1000_0000_0000


def native() -> VDSO:
    program = Program("our own vDSO")
    decode = vdso.collect(program, vdso.areas(maps(Path("/proc/self/maps").read_text())))
    return decode(local.run(program.link()))


def plan(directory: Path, made: Build) -> list[str]:
    """The lines of tests/victims/foreign.c that make it."""
    (directory / "proxy").write_bytes(made.content)
    (directory / "own").write_bytes(made.own)
    rt = {area.name: area.start for area in made.rt}
    lines = [f"move {a.name} {rt[a.name]:x}" if a.name in rt else f"drop {a.name}" for a in native().areas]
    mark, *places, proxy = made.mapped
    lines.append(f"map {mark.start:x} {mark.size:x} 5 {directory}/own")
    lines += [f"map {place.start:x} {place.size:x} 1 -" for place in places]
    return [*lines, f"map {proxy.start:x} {proxy.size:x} 5 {directory}/proxy"]


@pytest.mark.parametrize("there", ["native", "none"])
@pytest.mark.parametrize("base", [NEAR, FAR])
@pytest.mark.parametrize("kernel", vdsos.KERNELS)
def test_every_function_does_its_work(kernel: str, base: int, there: str, victims: Victims, tmp_path: Path) -> None:
    verdict = decide(vdsos.vdso(kernel), native() if there == "native" else VDSO(()), "it", differ=True)
    assert verdict.decision is Decision.PROXY and not verdict.problems
    made = vdso.build(verdict, base)
    lines = plan(tmp_path, made)
    area = verdict.task.area
    assert area is not None
    lines += [f"call {bare(entry.name)} {area.start + entry.offset:x}" for entry in verdict.entries]
    (tmp_path / "plan").write_text("\n".join(lines) + "\n")
    done = subprocess.run([victims("foreign"), str(tmp_path / "plan")], capture_output=True, text=True, timeout=60)
    assert done.stdout == "pass\n" and not done.stderr, f"{done}\n" + "\n".join(lines)

"""Proxies of five kernels' vDSOs, made in a process of this one, and called at the addresses of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate.engine import vdso
from migrate.engine.outside import native_vdso
from migrate.engine.vdso import VDSO, Decision, decide, stubs
from migrate.engine.vdso.stubs import bare
from tests.kernel.foreign import FAR, NEAR, carry_out, plan
from tests.unit import vdsos
from tests.victims import Victims


@pytest.mark.parametrize("there", ["native", "none"])
@pytest.mark.parametrize("base", [NEAR, FAR])
@pytest.mark.parametrize("kernel", vdsos.KERNELS)
def test_every_function_does_its_work(kernel: str, base: int, there: str, victims: Victims, tmp_path: Path) -> None:
    verdict = decide(vdsos.vdso(kernel), native_vdso() if there == "native" else VDSO(()), "it", differ=True)
    assert verdict.decision is Decision.PROXY and not verdict.problems
    made = vdso.build(verdict, base)
    lines = plan(tmp_path, made)
    area = verdict.task.area
    assert area is not None
    lines += [f"call {bare(entry.name)} {area.start + entry.offset:x}" for entry in verdict.entries]
    assert carry_out(victims, tmp_path, lines) == ""


@pytest.mark.parametrize("kernel", vdsos.KERNELS)
def test_no_system_call_where_the_destinations_own_makes_none(kernel: str, victims: Victims, tmp_path: Path) -> None:
    """Each use of each function, once at the task's address and once at that of the rt-vdso, when the system calls that
    they stand for have come to fail."""
    verdict = decide(vdsos.vdso(kernel), native_vdso(), "it", differ=True)
    made = vdso.build(verdict, NEAR)
    area, rt = verdict.task.area, VDSO(made.rt).area
    assert area is not None and rt is not None
    entries = {bare(entry.name): entry for entry in verdict.entries if entry.there is not None}
    lines = [*plan(tmp_path, made)]
    if "getrandom" in entries:  # it asks the kernel for a seed, once
        lines.append(f"call getrandom {area.start + entries['getrandom'].offset:x}")
    lines.append("forbid")
    for name, entry in entries.items():
        assert entry.there is not None
        if name not in ("sgx_enter_enclave", *stubs.SELF_CONTAINED):
            lines.append(f"quiet direct {name} {rt.start + entry.there:x}")
            lines.append(f"quiet proxied {name} {area.start + entry.offset:x}")
    said = carry_out(victims, tmp_path, lines).splitlines()
    told = {label: [line for line in said if line.startswith(label)] for label in ("direct", "proxied")}
    assert [line.split()[1:] for line in told["direct"]] == [line.split()[1:] for line in told["proxied"]]
    bits = {line.split()[1]: int(line.split()[2], 16) for line in told["direct"]}
    # It is no system call all the same that has been compared with another: the coarse clocks never make one.
    assert len(bits) >= 5 and bits["clock_gettime"] & 0x60 == 0x60 and not bits["clock_gettime"] & 0x80

"""The assembler and the C header describe the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import migrate.pie
from migrate.engine.kernel.syscalls import NUMBERS, NUMBERS_32
from migrate.engine.program import ops, program

PIE = Path(migrate.pie.__file__).parent

PROBE = r"""
#include <stdio.h>
#include <stddef.h>
#include "program.h"
#define SHOW(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))
int main(void)
{
    printf("op %zu\nprogram %zu\n", sizeof(struct op), sizeof(struct program));
    printf("relocation %zu\n", sizeof(struct relocation));
    SHOW(op, kind); SHOW(op, check); SHOW(op, number); SHOW(op, modes);
    SHOW(op, expect); SHOW(op, args); SHOW(op, result);
    SHOW(program, failed); SHOW(program, failed_result);
    printf("last kind %d\nlast mode %d\nlast check %d\nmagic %d\n", CALL32, LOAD64, CHECK_OR_ERRNO, MAGIC);
    return 0;
}
"""


def test_header_and_assembler_agree(tmp_path: Path) -> None:
    source = tmp_path / "probe.c"
    source.write_text(PROBE)
    subprocess.run(["gcc", "-I", str(PIE), "-o", str(tmp_path / "probe"), str(source)], check=True)
    out = subprocess.run([str(tmp_path / "probe")], check=True, capture_output=True, text=True).stdout
    said = {key: int(value) for key, _, value in (line.rpartition(" ") for line in out.splitlines())}
    assert said["op"] == ops.OP.size
    assert said["program"] == program.HEADER.size
    assert said["relocation"] == program._RELOCATION.size
    assert said["op.result"] == ops.OP.size - 8 and said["op.args"] == 24 and said["op.expect"] == 16
    assert said["op.number"] == 4 and said["op.modes"] == 8
    assert said["program.failed"] == 28 and said["program.failed_result"] == 32
    assert said["last kind"] == max(ops.OpKind) and said["last mode"] == max(ops.Mode)
    assert said["last check"] == max(ops.Check) and said["magic"] == program.MAGIC


@pytest.mark.parametrize(("bits", "numbers"), [(64, NUMBERS), (32, NUMBERS_32)])
def test_syscall_numbers_are_the_headers(bits: int, numbers: dict[str, int]) -> None:
    probe = f"#include <asm/unistd_{bits}.h>\n" + "".join(f"{name} __NR_{name}\n" for name in numbers)
    command = ["gcc", "-E", "-P", "-x", "c", "-"]
    out = subprocess.run(command, input=probe, check=True, capture_output=True, text=True).stdout
    said = dict(line.split() for line in out.splitlines() if line.strip())
    newer = {name for name, number in said.items() if not number.isdecimal()}  # than the headers installed here
    assert newer <= {"mseal"}
    assert {name: int(number) for name, number in said.items() if name not in newer} == {
        name: number for name, number in numbers.items() if name not in newer
    }

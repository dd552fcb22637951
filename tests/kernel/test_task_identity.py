"""Names, and the addresses that a thread has given to the kernel; rseq and its critical sections."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from migrate.engine.kinds.identity import Rseq, rseq_abort_ip
from migrate.engine.program import Program
from tests.kernel.actors import Actor, collect, syscall

SIGNATURE = 0x53053053  # glibc's RSEQ_SIG


def _name(raw: bytes) -> None:
    syscall("prctl", 15, raw + b"\0", 0, 0, 0)


@pytest.mark.parametrize("name", [b"worker/3", b"", b"fifteen letters", b"caf\xc3\xa9 \xff", b"a) R 1 (\n\\"])
def test_names(name: bytes) -> None:
    with Actor() as source, Actor() as there:
        source.call(_name, name)
        before = collect(source).as_pid(there.pid).thread.identity
        program = Program("identity")
        before.restore(program)
        there.run(program)
        assert Path(f"/proc/{there.pid}/comm").read_bytes() == name + b"\n"
        assert collect(there).thread.identity == before


def _addresses() -> None:
    syscall("set_tid_address", 0x1234_5678_0000)
    syscall("set_robust_list", 0x1234_5678_1000, 24)


def test_addresses() -> None:
    with Actor() as source, Actor() as there:
        source.call(_addresses)
        before = collect(source).as_pid(there.pid).thread.identity
        assert (before.tid_address, before.robust_list, before.robust_list_size) == (
            0x1234_5678_0000, 0x1234_5678_1000, 24,
        )  # fmt: skip
        program = Program("identity")
        before.restore(program)
        there.run(program)
        assert collect(there).thread.identity == before


def test_another_number_is_an_error() -> None:
    with Actor() as source, Actor() as there:
        program = Program("identity")
        collect(source).thread.identity.restore(program)
        assert there.attempt(program) == ("clear_child_tid", there.pid)


def _unregister(rseq: Rseq) -> None:
    syscall("rseq", rseq.address, rseq.size, 1, rseq.signature)


def test_rseq() -> None:
    with Actor() as source, Actor() as there:
        before = collect(source).thread.rseq
        if before is None:  # a libc without it: Debian's glibc 2.36 has it
            pytest.fail("this Python does not register rseq, so nothing is tested")
        there.call(_unregister, before)
        assert collect(there).thread.rseq is None
        program = Program("rseq")
        before.restore(program)
        there.run(program)
        assert collect(there).thread.rseq == before
        assert before.signature == SIGNATURE


class _Memory:
    def __init__(self, *, version: int = 0, signature: int = SIGNATURE, pointer: int = 0x2000) -> None:
        self.pieces = {
            0x1008: struct.pack("<Q", pointer),
            0x2000: struct.pack("<IIQQQ", version, 0, 0x40_0000, 0x20, 0x50_0000),
            0x50_0000 - 4: struct.pack("<I", signature),
        }

    def __call__(self, address: int, length: int) -> bytes:
        piece = self.pieces[address]
        assert len(piece) == length
        return piece


def test_critical_sections() -> None:
    rseq = Rseq(0x1000, 32, SIGNATURE)
    assert rseq_abort_ip(_Memory(), rseq, 0x40_0000) == 0x50_0000
    assert rseq_abort_ip(_Memory(), rseq, 0x40_001F) == 0x50_0000
    assert rseq_abort_ip(_Memory(), rseq, 0x40_0020) is None  # committed
    assert rseq_abort_ip(_Memory(), rseq, 0x3F_FFFF) is None
    assert rseq_abort_ip(_Memory(), rseq, 0x50_0000) is None
    assert rseq_abort_ip(_Memory(pointer=0), rseq, 0x40_0000) is None
    assert rseq_abort_ip(_Memory(version=1), rseq, 0x40_0000) is None
    assert rseq_abort_ip(_Memory(signature=1), rseq, 0x40_0000) is None
    assert rseq_abort_ip(_Memory(), None, 0x40_0000) is None

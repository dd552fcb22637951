"""The interpreter, run in this process: programs in, results out, no ptrace."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

import migrate.pie
from migrate.engine.overseer import clone_args
from migrate.engine.program import OpKind, Program
from migrate.pie.local import run

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_THREAD, CLONE_SYSVSEM = (
    0x100,
    0x200,
    0x400,
    0x800,
    0x10000,
    0x40000,
)
THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM


def test_results_feed_later_ops() -> None:
    program = Program("a pipe")
    ends = program.space(8)
    program.syscall("pipe2", ends, 0, label="pipe")
    sent = program.syscall("write", ends.load32(4), program.string("hello"), 5, label="write")
    got = program.space(8)
    received = program.syscall("read", ends.load32(0), got, sent, label="read as many")
    for offset in (0, 4):
        program.syscall("close", ends.load32(offset), label="close")
    results = run(program.link())
    assert results.failed is None
    assert results.of(received) == 5
    assert results.bytes(got) == b"hello\0\0\0"


def test_the_first_failure_stops_the_program_and_is_named() -> None:
    program = Program("a failure")
    before = program.syscall("getpid", label="before")
    program.syscall("close", 0x7FFF_FFF0, label="fd that is not there")
    after = program.syscall("getpid", label="after")
    results = run(program.link())
    assert results.failed is not None
    op, result = results.failed
    assert (op.label, op.name, result) == ("fd that is not there", "close", -errno.EBADF)
    assert results.of(before) == os.getpid()
    assert results.of(after) == 0


@pytest.mark.parametrize(
    ("wanted", "fails"),
    [
        ({"ignore": True}, False),
        ({"errno_ok": errno.EBADF}, False),
        ({"errno_ok": errno.ENOENT}, True),
        ({"expect": 0}, True),
    ],
)
def test_which_results_are_failures(wanted: dict[str, Any], fails: bool) -> None:
    program = Program("checks")
    program.syscall("close", 0x7FFF_FFF0, label="close", **wanted)
    assert (run(program.link()).failed is not None) == fails


def test_expect_takes_the_exact_result_only() -> None:
    for expected, fails in ((os.getpid(), False), (os.getpid() + 1, True)):
        program = Program("pid")
        program.syscall("getpid", label="pid", expect=expected)
        assert (run(program.link()).failed is not None) == fails


def test_pointers_in_data_are_relocated() -> None:
    program = Program("iovec")
    ends = program.space(8)
    program.syscall("pipe2", ends, 0, label="pipe")
    first, second = program.data(b"state is "), program.data(b"data")
    vector = program.data(struct.pack("<4Q", 0, first.size, 0, second.size), pointers={0: first, 16: second})
    program.syscall("writev", ends.load32(4), vector, 2, label="writev")
    got = program.space(16)
    program.syscall("read", ends.load32(0), got, 16, label="read")
    for offset in (0, 4):
        program.syscall("close", ends.load32(offset), label="close")
    assert run(program.link()).bytes(got)[:13] == b"state is data"


def test_copy_and_check() -> None:
    program = Program("copy")
    source, target = program.data(struct.pack("<Q", 0x1234)), program.space(8)
    program.op(OpKind.COPY, target, source, 8, label="copy")
    program.op(OpKind.CHECK, target, 0xFF, 0x34, label="low byte")
    wrong = program.op(OpKind.CHECK, target, 0xFF00, 0x1300, label="the other one")
    results = run(program.link())
    assert results.bytes(target) == struct.pack("<Q", 0x1234)
    assert results.failed is not None and results.failed[0].label == "the other one"
    assert results.of(wrong) == -errno.EILSEQ


def threaded(threads: int, failing: bool = False) -> Program:
    program = Program("threads")
    counter = program.space(8)
    for _ in range(threads):
        stack = program.space(8192, align=16)
        fields = (THREAD, 0, 0, 0, 0, 0, stack.size, 0, 0, 0, 0)
        args = program.data(struct.pack("<11Q", *fields), pointers={40: stack})
        with program.branch() as branch:
            if failing:
                program.syscall("close", 0x7FFF_FFF0, label="a thread's failure")
            program.op(OpKind.COUNT, counter, label="here")
        program.clone(args, branch, label="clone")
    program.op(OpKind.WAIT, counter, threads, label="all here")
    return program


def test_branches_run_in_threads_and_are_waited_for() -> None:
    assert run(threaded(16).link()).failed is None


def test_a_failing_branch_is_the_failure_of_the_program() -> None:
    results = run(threaded(2, failing=True).link())
    assert results.failed is not None
    assert results.failed[0].label == "a thread's failure"


def test_clone_args_ask_for_the_number() -> None:
    program = Program("number")
    program.syscall("read", -1, clone_args(program, 0, 0, 0, 4711), 0, label="never run", ignore=True)
    raw = run(program.link()).image
    assert struct.pack("<q", 4711) in raw


# The LZ4 decoder reads what came over the network


@cache
def decoder() -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "lz4.so")
        source = Path(migrate.pie.__file__).parent / "lz4.c"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        function = ctypes.CDLL(str(library)).lz4_decode
    function.restype = ctypes.c_long
    return function


def decode(block: bytes, room: int) -> int | bytes:
    guard = b"\xa5" * 64
    out = ctypes.create_string_buffer(bytes(room) + guard, room + len(guard))
    size = int(decoder()(ctypes.c_char_p(block), ctypes.c_ulong(len(block)), out, ctypes.c_ulong(room)))
    assert out.raw[room:] == guard, "wrote behind its room"
    return size if size < 0 else out.raw[:size]


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 400)), max_size=20))
def test_lz4_decodes_what_the_library_encodes(pieces: list[tuple[bytes, int]]) -> None:
    plain = b"".join(piece * times for piece, times in pieces)
    assert decode(lz4.block.compress(plain, store_size=False), len(plain)) == plain


@given(st.binary(max_size=300))
def test_lz4_garbage_stays_inside_its_room(block: bytes) -> None:
    result = decode(block, 512)
    assert result == -errno.EBADMSG or isinstance(result, bytes)

"""Programs as people read them."""

from __future__ import annotations

import errno
import struct

from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.program import Linked, OpKind, Program
from migrate.engine.program.listing import describe_failure, line, listing
from migrate.engine.program.ops import OP
from migrate.engine.program.program import Results
from migrate.engine.program.symbols import ARGUMENTS, number, writer

AT_FDCWD = -100
HEADER = 40


def sample() -> Program:
    program = Program("file table of 812")
    path = program.string("/var/log/app.log")
    fd = program.syscall("openat", AT_FDCWD, path, 0o1, 0, label="fd 7 (/var/log/app.log)")
    program.syscall("dup3", fd, 7, 0, label="fd 7 (/var/log/app.log)", expect=7)
    pipe = program.space(8)
    program.syscall("pipe2", pipe, 0o2000000, label="fd 8 and 9 (pipe)")
    program.syscall("close", pipe.load32(4), label="fd 9 (pipe)")
    program.syscall("mmap", 0x7F0000000000, 0x2000, 5, 0x12, 7, 0, label="7f0000000000 (libc)")
    with program.branch() as child:
        program.syscall("madvise", 0x7F0000000000, 4096, 4, label="child")
        program.syscall("kill", 812, 9, label="child")
    program.clone(program.space(88), child, label="thread 813")
    program.op(OpKind.CHECK, program.data(bytes(16)).at(8), 0xFFFF, 1, label="the vDSO mark")
    return program


def ran(linked: Linked, results: dict[int, int], failed: int = -1) -> Results:
    """As the interpreter leaves an image: results in their ops, the failed op in the header."""
    image = bytearray(linked.image)
    for index, result in results.items():
        struct.pack_into("<q", image, HEADER + index * OP.size + OP.size - 8, result)
    struct.pack_into("<iq", image, 28, failed, results.get(failed, 0))
    return linked.results(bytes(image))


def test_listing() -> None:
    assert (
        listing(sample().link())
        == """\
# file table of 812
  0  r0 = openat(AT_FDCWD, "/var/log/app.log", O_WRONLY, 0)  # fd 7 (/var/log/app.log)
  1  dup3(r0, 7, 0)  # fd 7 (/var/log/app.log)
  2  pipe2(data+0x18[8], O_CLOEXEC)  # fd 8 and 9 (pipe)
  3  close(i32[data+0x1c])  # fd 9 (pipe)
  4  mmap(0x7f0000000000, 8192, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED, 7, 0)  # 7f0000000000 (libc)
  5  clone3(data+0x20[88], 88) -> child goes on at 8  # thread 813
  6  check(data+0x80, 65535, 1)  # the vDSO mark
  7  end()  # end of the program
# branch 1
  8  madvise(0x7f0000000000, 4096, MADV_DONTNEED)  # child
  9  kill(812, SIGKILL)  # child
 10  end()  # end of the branch"""
    )


def test_listing_after_a_run() -> None:
    linked = sample().link()
    shown = listing(linked, ran(linked, {0: 3, 1: 7, 2: -errno.EMFILE, 8: 0x7F0000000000}, failed=2)).splitlines()
    assert shown[1].endswith("O_WRONLY, 0) = 3  # fd 7 (/var/log/app.log)")
    assert shown[3] == "! 2  pipe2(data+0x18[8], O_CLOEXEC) = -1 EMFILE (Too many open files)  # fd 8 and 9 (pipe)"
    assert shown[4] == "  3  close(i32[data+0x1c])  (not run)  # fd 9 (pipe)"
    assert shown[10].endswith("MADV_DONTNEED) = 0x7f0000000000  # child")  # another branch goes on
    whole = listing(linked, ran(linked, {0: 3}))
    assert "!" not in whole and "not run" not in whole


def test_failures_in_words() -> None:
    linked = sample().link()
    expected = "restoring fd 7 (/var/log/app.log) of pid 1234: openat: No such file or directory"
    assert describe_failure(linked, 0, -errno.ENOENT, where="of pid 1234") == expected
    assert describe_failure(linked, 1, 8, "dumping") == "dumping fd 7 (/var/log/app.log): dup3: returned 8, expected 7"
    assert describe_failure(linked, 6, -errno.EILSEQ) == "restoring the vDSO mark: check: not what it should be"
    assert describe_failure(linked, 5, -errno.EEXIST) == "restoring thread 813: clone3: File exists"
    assert "op 99 is said to have failed, there are 11" in describe_failure(linked, 99, -1)
    assert "unheard" not in describe_failure(linked, -1, 0)


def test_results_have_the_failure_that_is_described() -> None:
    linked = sample().link()
    failed = ran(linked, {2: -errno.EMFILE}, failed=2).failed
    assert failed is not None and failed[0] is linked.ops[2] and failed[1] == -errno.EMFILE


def shown(call: str, *args: int) -> str:
    program = Program("one")
    program.syscall(call, *args, label="x")
    return line(program.link(), 0)


def test_arguments_as_strace_writes_them() -> None:
    assert shown("openat", AT_FDCWD, 0, 0, 0o644) == "openat(AT_FDCWD, 0, O_RDONLY, 0644)"
    assert shown("openat", 5, 0, 0o2102002 & ~0o2, 0) == "openat(5, 0, O_RDONLY|O_APPEND|O_LARGEFILE|O_CLOEXEC, 0)"
    assert shown("openat", 5, 0, 0o4010002, 0) == "openat(5, 0, O_RDWR|O_SYNC, 0)"
    assert shown("mmap", 0, 4096, 0, 0x8000022, -1, 0) == (
        "mmap(0, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|0x8000000, -1, 0)"
    )
    assert (
        shown("mmap", 0, 4096, 3, 3, 2**32 - 1, 0) == "mmap(0, 4096, PROT_READ|PROT_WRITE, MAP_SHARED_VALIDATE, -1, 0)"
    )
    assert shown("fcntl", 3, 4, 0o2000) == "fcntl(3, F_SETFL, 1024)"
    assert shown("rt_sigaction", 34, 0, 0, 8) == "rt_sigaction(SIGRTMIN, 0, 0, 8)"
    assert shown("rt_sigaction", 40, 0, 0, 8) == "rt_sigaction(SIGRT_8, 0, 0, 8)"
    assert shown("lseek", 3, -1, 2) == "lseek(3, -1, SEEK_END)"
    assert shown("prctl", 0x53564D41, 0) == "prctl(PR_SET_VMA, 0)"
    assert shown("prctl", 999, 0) == "prctl(999, 0)"


def test_numbers() -> None:
    assert [number(n) for n in (0, -1, 65535, 65536, 2**64 - 1, 2**63)] == [
        "0", "-1", "65535", "0x10000", "-1", "0x8000000000000000",
    ]  # fmt: skip


def test_every_writer_belongs_to_a_call_and_takes_any_number() -> None:
    assert set(ARGUMENTS) <= set(NUMBERS)
    for call, writers in ARGUMENTS.items():
        for position in range(len(writers) + 1):
            for value in (0, 1, 3, -1, -100, 2**31, 2**32 - 1, 2**63, 2**64 - 1):
                assert writer(call, position)(value)


@given(st.binary(max_size=200), st.text())
def test_everything_stays_on_its_line(content: bytes, label: str) -> None:
    program = Program(label)
    program.syscall("openat", AT_FDCWD, program.data(content + b"\0"), 0, 0, label=label)
    lines = listing(program.link()).split("\n")
    assert len(lines) == 3 and all(map(str.isprintable, lines))


def test_long_strings_are_cut() -> None:
    program = Program("strings")
    program.syscall("openat", AT_FDCWD, program.string("/" + "x" * 500), 0, 0, label="x")
    assert 'x"…, O_RDONLY' in line(program.link(), 0) and len(line(program.link(), 0)) < 200

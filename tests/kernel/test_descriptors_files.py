"""Descriptors of what has contents: held by one process, dumped from outside, restored in another, and used there."""

from __future__ import annotations

import fcntl
import os
import select
from pathlib import Path

import pytest

from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.opened import DumpOptions
from migrate.engine.kinds.placing import Context
from tests.kernel.descriptor_bed import ANSWER, LOW, REQUEST, child, libc, linked, moved, put, run_all, same_outside

# Regular files


def open_files(path: str) -> None:
    put(os.open(path, os.O_RDWR), 5)
    os.lseek(5, 7, os.SEEK_SET)
    os.dup2(5, 9, inheritable=False)
    put(os.open(path, os.O_RDONLY), 3)  # another description of the same file
    put(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK), 0, inheritable=False)
    put(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY), 1)
    put(os.open(path, os.O_PATH), 2)
    put(os.open("/dev/urandom", os.O_RDONLY), 50)
    put(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 51, inheritable=False)


def use_files() -> tuple[bytes, bytes, int]:
    first = os.read(5, 3)
    second = os.read(9, 3)  # the same offset
    assert os.read(3, 2) == b"01"
    os.write(0, b"tail")
    assert len(os.read(50, 16)) == 16
    assert os.write(51, b"x") == 1
    return first, second, len(os.listdir(1))


def test_files_by_path(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789abcdef")
    with child() as source:
        source.do(open_files, str(path))
        with moved(source) as target:
            same_outside(source, target, 0, 1, 2, 3, 5, 9, 50, 51)
            for number in (0, 1, 2, 3, 5, 9, 50, 51):
                assert target.proc.link(f"fd/{number}") == source.proc.link(f"fd/{number}")
            assert target.do(use_files) == (b"789", b"abc", 1)
    assert path.read_bytes() == b"0123456789abcdeftail"


def test_restore_checks_sizes(tmp_path: Path) -> None:
    """Behind the preflight's back the file has become another."""
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    for flags, content, fails in (
        (os.O_RDONLY, b"0123", True),
        (os.O_RDONLY, b"0123456789more", False),
        (os.O_RDWR, b"0123456789more", True),
        (os.O_WRONLY | os.O_APPEND, b"0123456789more", False),
        (os.O_WRONLY | os.O_APPEND, b"", True),
    ):
        path.write_bytes(b"0123456789")
        with child() as source, child() as target:
            source.do(os.open, str(path), flags)
            table, problems = source.dump()
            assert not problems
            path.write_bytes(content)
            said = str(target.do(run_all, linked(table)))
            assert bool(said) is fails, (flags, content, said)
            assert not fails or "10 bytes: lseek" in said


def open_deleted(directory: str) -> None:
    path = f"{directory}/gone"
    put(os.open(path, os.O_RDWR | os.O_CREAT, 0o640), 4)
    os.write(4, b"start")
    os.lseek(4, 5 << 20, os.SEEK_SET)
    os.write(4, b"end")
    put(os.open(path, os.O_RDONLY), 6)
    os.lseek(4, 1, os.SEEK_SET)
    os.unlink(path)
    put(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600), 7)
    os.write(7, b"nameless")


def use_deleted() -> tuple[bytes, bytes, int, int, int]:
    os.write(4, b"S")
    found = os.fstat(4)
    return os.read(6, 5), os.pread(6, 3, 5 << 20), found.st_size, found.st_mode & 0o777, found.st_blocks


def link_nameless(path: str) -> None:
    assert libc.linkat(-100, b"/proc/self/fd/7", -100, path.encode(), 0x400) == 0


@pytest.mark.parametrize("taken", [False, True])
def test_deleted_files(tmp_path: Path, taken: bool) -> None:
    with child() as source:
        source.do(open_deleted, str(tmp_path))
        path = f"{tmp_path}/gone"
        if taken:
            (tmp_path / "gone").write_text("a stranger")
        context = Context(frozenset({REQUEST, ANSWER}), LOW, taken=frozenset({path}) if taken else frozenset())
        with moved(source, context) as target:
            same_outside(source, target, 4, 6)
            if not taken:
                assert target.proc.link("fd/4") == f"{path} (deleted)"
            assert target.proc.link("fd/6") == target.proc.link("fd/4")
            *found, blocks = target.call(use_deleted)
            assert found == [b"sSart", b"end", (5 << 20) + 3, 0o640]
            assert blocks * 512 < 1 << 20  # the hole is still one
            assert target.do(os.pread, 7, 100, 0) == b"nameless"
            assert source.do(os.pread, 4, 5, 0) == b"start"  # and it is not the source's file
            target.do(link_nameless, f"{tmp_path}/named")
        assert (tmp_path / "named").read_text() == "nameless"
    assert sorted(os.listdir(tmp_path)) == sorted(["gone"] * taken + ["named"])


# Pipes


def open_pipes(fifo: str) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    os.write(write, b"in the pipe" * 1000)
    put(read, 11)
    put(write, 10)  # numbers crosswise
    os.dup2(10, 12)
    packets = os.pipe2(os.O_DIRECT)
    os.write(packets[1], b"one")
    os.write(packets[1], b"three")
    put(packets[0], 20)
    put(packets[1], 21)
    small = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(small[1], 1031, 4096)
    os.write(small[1], b"s" * 4096)
    put(small[0], 22, inheritable=False)
    put(small[1], 23)
    half = os.pipe()
    os.write(half[1], b"last words")
    os.close(half[1])
    put(half[0], 24)
    widow = os.pipe()
    os.close(widow[0])
    put(widow[1], 25)
    put(os.open(fifo, os.O_RDWR | os.O_NONBLOCK), 30)
    os.write(30, b"fifo")
    put(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), 31)
    put(os.open("/proc/self/fd/11", os.O_RDONLY | os.O_NONBLOCK), 13)


def use_pipes() -> None:
    assert os.read(11, 1 << 20) == b"in the pipe" * 1000
    os.write(12, b"more")
    assert os.read(13, 100) == b"more"
    with pytest.raises(BlockingIOError):
        os.read(11, 1)
    assert (os.read(20, 100), os.read(20, 100)) == (b"one", b"three")
    assert fcntl.fcntl(22, 1032) == 4096
    assert not select.select([], [23], [], 0)[1]
    assert os.read(22, 1 << 20) == b"s" * 4096
    assert os.read(24, 100) == b"last words"
    assert os.read(24, 100) == b""
    with pytest.raises(BrokenPipeError):
        os.write(25, b"x")
    assert os.read(31, 100) == b"fifo"
    os.write(30, b"again")
    assert os.read(30, 100) == b"again"
    assert not os.get_inheritable(22)


def test_pipes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def another_host() -> None:
        fifo.rename(tmp_path / "here")  # one inode is one pipe, as long as there is one kernel
        os.mkfifo(fifo)

    with child() as source:
        source.do(open_pipes, str(fifo))
        with moved(source, between=another_host) as target:
            same_outside(source, target, 10, 11, 12, 20, 21, 22, 23, 24, 25, 30, 31)
            target.do(use_pipes)
        source.do(use_pipes)  # looking took nothing out


# Files in memory


def open_memfds() -> None:
    put(os.memfd_create("first", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC), 3, inheritable=False)
    os.write(3, b"hello")
    os.truncate(3, 1 << 20)
    fcntl.fcntl(3, 1033, 0x2 | 0x4 | 0x8)  # shrink, grow, write
    put(os.memfd_create("second", 0), 4)
    os.write(4, os.urandom(64) * 100_000)  # more than travels in one program
    put(os.open("/proc/self/fd/4", os.O_RDONLY), 5)
    os.lseek(5, 64, os.SEEK_SET)


def use_memfds() -> tuple[bytes, int, int]:
    assert os.pread(3, 5, 0) == b"hello"
    assert os.fstat(3).st_size == 1 << 20
    with pytest.raises(PermissionError):
        os.pwrite(3, b"x", 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(4, 1033, 1)
    return os.read(5, 64), fcntl.fcntl(3, 1034), os.fstat(4).st_size


def test_memfd() -> None:
    with child() as source:
        source.do(open_memfds)
        with moved(source) as target:
            same_outside(source, target, 3, 4, 5)
            assert target.proc.link("fd/3") == "/memfd:first (deleted)"
            assert target.do(use_memfds) == (source.do(os.pread, 4, 64, 64), 0xE, 6_400_000)
            assert target.do(os.pread, 4, 7_000_000, 0) == source.do(os.pread, 4, 7_000_000, 0)


def test_memfd_made_by_the_address_space() -> None:
    """Contents that travel with the memory are not read, and the file at the given number is used."""
    with child() as source:
        source.do(open_memfds)
        key = (lambda s: (s.st_dev, s.st_ino))(source.proc.stat("fd/4"))
        table, problems = source.dump(DumpOptions(True, {key: ((0, 4096), (8192, 8192))}))
        assert not problems
        (made,) = [one for one in table.objects if one.key == key]
        assert isinstance(made, Memfd) and made.volume == 6_400_000 - 4096 - 8192
        with child() as target:
            target.do(put, target.do(os.memfd_create, "second"), 700)
            target.do(os.pwrite, 700, source.do(os.pread, 4, 16384, 0), 0)
            context = Context(frozenset({REQUEST, ANSWER}), LOW, objects={key: 700})
            assert target.do(run_all, linked(table, context)) == ""
            assert target.do(os.pread, 4, 7_000_000, 0) == source.do(os.pread, 4, 7_000_000, 0)
            assert "700" not in target.proc.names("fd")
            assert target.proc.stat("fd/4").st_ino == target.proc.stat("fd/5").st_ino

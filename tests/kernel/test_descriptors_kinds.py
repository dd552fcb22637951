"""Every kind of descriptor: held by one process, dumped from outside, restored in another, and used there."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrate.engine.kinds.epoll import Epoll, Watch
from migrate.engine.kinds.eventfd import EventFd
from migrate.engine.kinds.inotify import Inotify
from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.opened import Dump, DumpOptions, OpenFile
from migrate.engine.kinds.placing import Context
from tests.kernel.descriptor_bed import ANSWER, LOW, REQUEST, Child, child, linked, moved, run_all

libc = ctypes.CDLL(None, use_errno=True)


def fdinfo(pid: int, number: int) -> list[str]:
    """The lines that say what must be the same. The mount of an O_TMPFILE or memfd, inodes and eventfd ids differ."""
    lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    return [line for line in lines if not line.startswith(("ino:", "eventfd-id:", "mnt_id:", "tfd:", "it_value:"))]


def same_outside(source: Child, target: Child, *numbers: int) -> None:
    for number in numbers:
        assert fdinfo(target.pid, number) == fdinfo(source.pid, number)


def put(fd: int, number: int, inheritable: bool = True) -> None:
    """Move a descriptor to a number."""
    if fd == number:
        os.set_inheritable(fd, inheritable)
        return
    os.dup2(fd, number, inheritable)
    os.close(fd)


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


# Anonymous inodes


def open_events() -> None:
    put(libc.eventfd(5, os.O_NONBLOCK), 3)
    put(libc.eventfd(2, 1), 4)
    put(libc.eventfd(0, 0), 5)
    os.write(5, struct.pack("Q", 1 << 40))
    put(libc.signalfd(-1, struct.pack("Q", 1 << 9 | 1 << 63), os.O_CLOEXEC), 6, inheritable=False)
    put(os.pidfd_open(os.getpid(), os.O_NONBLOCK), 7)
    os.dup2(4, 40)


def use_events() -> list[int]:
    return [struct.unpack("Q", os.read(fd, 8))[0] for fd in (3, 4, 40, 5)]


def test_eventfd_signalfd_pidfd() -> None:
    with child() as source:
        source.do(open_events)
        with moved(source) as target:
            same_outside(source, target, 3, 4, 5, 6, 40)
            assert target.do(use_events) == [5, 1, 1, 1 << 40]
            assert f"Pid:\t{target.pid}" in Path(f"/proc/{target.pid}/fdinfo/7").read_text()
            target.do(os.kill, target.pid, 0)


def test_eventfd_kind_found_by_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    before = OpenFile.__init__

    def older(self: OpenFile, dump: Dump, number: int, link: str, raw: str, *rest: Any) -> None:
        lines = [line for line in raw.split("\n") if not line.startswith("eventfd-semaphore")]
        before(self, dump, number, link, "\n".join(lines), *rest)

    monkeypatch.setattr(OpenFile, "__init__", older)
    with child() as source:
        for count in (0, 1, 2, 7):
            for kind in (0, 1):
                source.do(libc_eventfd, count, kind)
        table, problems = source.dump()
        assert not problems
        found = [d.state for d in table.descriptions if isinstance(d.state, EventFd)]
        assert found == [EventFd(count, bool(kind)) for count in (0, 1, 2, 7) for kind in (0, 1)]
        monkeypatch.undo()
        assert source.dump()[0].descriptions == table.descriptions  # every count is what it was


def libc_eventfd(count: int, flags: int) -> int:
    return int(libc.eventfd(count, flags))


def open_epoll() -> None:
    read, write = os.pipe()
    put(read, 8)
    put(write, 7)
    poll = select.epoll()
    os.dup2(poll.fileno(), 3)
    poll.close()
    poll = select.epoll.fromfd(3)
    poll.register(8, select.EPOLLIN | select.EPOLLET)
    os.dup2(8, 9)
    poll.register(9, select.EPOLLIN)
    inner = select.epoll()
    os.dup2(inner.fileno(), 4)
    poll.register(4, select.EPOLLIN)
    inner = select.epoll.fromfd(4)
    inner.register(7, select.EPOLLOUT | select.EPOLLONESHOT)
    for one in (poll, inner):
        _kept.append(one)


_kept: list[object] = []


def use_epoll() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    poll = select.epoll.fromfd(3)
    before = sorted(poll.poll(0))
    os.write(7, b"x")
    after = sorted(poll.poll(0))
    _kept.append(poll)
    return before, after


def test_epoll() -> None:
    with child() as source:
        source.do(open_epoll)
        with moved(source) as target:
            table, _ = source.dump()
            again, _ = target.dump()
            for one, other in zip(table.descriptions, again.descriptions, strict=True):
                if isinstance(one.state, Epoll):
                    assert isinstance(other.state, Epoll) and set(one.state.watches) == set(other.state.watches)
            outer = table.descriptions[0].state
            assert isinstance(outer, Epoll)
            assert {watch.target for watch in outer.watches} == {4, 8, 9}
            assert Watch(8, select.EPOLLIN | select.EPOLLET | 0x18, 8) in outer.watches
            assert target.do(use_epoll) == ([(4, 1)], [(4, 1), (8, 1), (9, 1)])


def close_watched() -> None:
    open_epoll()
    os.dup2(8, 20)
    os.close(9)


def reuse_watched() -> None:
    close_watched()
    put(os.open("/dev/null", os.O_RDONLY), 9)


@pytest.mark.parametrize("how", [close_watched, reuse_watched])
def test_epoll_of_closed_descriptor_is_named(how: Callable[[], None]) -> None:
    with child() as source:
        source.do(how)
        _, problems = source.dump()
        assert len(problems) == 1
        assert problems[0].where == f"pid {source.pid} fd 3"
        assert "still watches what was descriptor 9" in problems[0].what


def open_inotify(directory: str) -> None:
    put(int(libc.inotify_init1(os.O_NONBLOCK)), 3)
    for name in ("a", "b", "c"):
        path = f"{directory}/{name}"
        Path(path).write_text("")
        assert libc.inotify_add_watch(3, path.encode(), 0x2) > 0
    libc.inotify_rm_watch(3, 2)
    assert libc.inotify_add_watch(3, directory.encode(), 0x100 | 0x80000000) == 4
    os.read(3, 4096)


def read_events(directory: str) -> list[tuple[int, int, str]]:
    Path(f"{directory}/c").write_text("x")
    Path(f"{directory}/new").write_text("")
    raw, found = os.read(3, 4096), []
    while raw:
        wd, mask, _, length = struct.unpack_from("iIII", raw)
        found.append((wd, mask, raw[16 : 16 + length].rstrip(b"\0").decode()))
        raw = raw[16 + length :]
    return found


def test_inotify(tmp_path: Path) -> None:
    with child() as source:
        source.do(open_inotify, str(tmp_path))
        with moved(source) as target:
            same_outside(source, target, 3)
            assert target.do(read_events, str(tmp_path)) == [(3, 2, ""), (4, 0x100, "new"), (4, 0x8000, "")]


def test_inotify_with_events_is_refused(tmp_path: Path) -> None:
    with child() as source:
        source.do(open_inotify, str(tmp_path))
        (tmp_path / "a").write_text("changed")
        table, problems = source.dump()
        assert ["events that the process has not read" in problem.what for problem in problems] == [True]
        assert not [d for d in table.descriptions if isinstance(d.state, Inotify)]


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


# Owners


def own_signals() -> None:
    read, write = os.pipe()
    put(read, 3)
    put(write, 4)
    fcntl.fcntl(3, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(3, 10, 12)  # F_SETSIG
    fcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC)


def owner_of(fd: int) -> tuple[int, int, int]:
    return fcntl.fcntl(fd, fcntl.F_GETOWN), fcntl.fcntl(fd, 11), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ASYNC


def test_signal_owner() -> None:
    """A process keeps its number, so here the source's is put into the target's place."""
    with child() as source, child() as target:
        source.do(own_signals)
        table, problems = source.dump()
        assert not problems
        descriptions = tuple(
            replace(d, owner=replace(d.owner, number=target.pid)) if d.owner else d for d in table.descriptions
        )
        assert target.do(run_all, linked(replace(table, descriptions=descriptions))) == ""
        assert target.do(owner_of, 3) == (target.pid, 12, os.O_ASYNC)
        assert target.do(owner_of, 4) == (0, 0, 0)

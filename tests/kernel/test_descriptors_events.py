"""Descriptors that tell of events: held by one process, dumped from outside, restored in another, and used there."""

from __future__ import annotations

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
from migrate.engine.kinds.opened import Dump, OpenFile
from tests.kernel.descriptor_bed import child, libc, linked, moved, put, run_all, same_outside


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

"""The table as a whole: what leads outside, locks, cwd and root, and dumping again."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import signal
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import locks
from migrate.engine.kinds.descriptor_reader import DescriptorReader
from migrate.engine.kinds.fs import FsState
from migrate.engine.kinds.placing import Context
from migrate.engine.kinds.stdio import StandardStream
from migrate.engine.program import Program
from tests.kernel.descriptor_bed import ANSWER, FROZEN, LOW, REQUEST, child, libc, linked, moved, put, run_all

GO = 890

# Outside


@contextmanager
def held(setup: Callable[[], object]) -> Iterator[tuple[Proc, int]]:
    """A process that inherits what ``setup`` leaves open, to be looked at from outside."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(go, GO)
            os.close(ready)
            os.close(go)
            setup()
            os.write(GO, b"x")
            os.close(GO)
            signal.pause()
        finally:
            os._exit(1)
    os.close(go)
    answer = os.read(ready, 1)
    os.read(ready, 1)  # until it has closed its end
    os.close(ready)
    pidfd = os.pidfd_open(pid)
    try:
        assert answer == b"x"
        with Proc(pid) as proc:
            yield proc, pidfd
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def only(numbers: dict[int, int]) -> None:
    """Close everything but these, each moved to its number."""
    for fd, number in numbers.items():
        os.dup2(fd, number + 500)
    os.closerange(0, 500)
    for number in numbers.values():
        os.dup2(number + 500, number)
        os.close(number + 500)


def _flags(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_GETFL)


def test_terminal_becomes_null_and_log(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    try:

        def setup() -> None:
            only({slave: 0})
            for number in (1, 2, 17):
                os.dup2(0, number)

        log = tmp_path / "log"
        with held(setup) as (proc, pidfd), child() as target:
            table, problems = DescriptorReader(proc, pidfd, frozenset({os.getpid()})).dump(FROZEN)
            assert problems == []
            assert [d.state for d in table.descriptions] == [StandardStream(True), StandardStream(False)]
            assert table.streams == (1, 2, 17)
            context = Context(frozenset({REQUEST, ANSWER}), LOW, str(log))
            assert target.do(run_all, linked(table, context)) == ""
            assert target.do(os.read, 0, 10) == b""
            for number in (1, 2, 17):
                target.do(os.write, number, b"%d;" % number)
            assert log.read_text() == "1;2;17;"
            assert target.call(_flags, 2) & os.O_APPEND
        with child() as target:
            assert target.do(run_all, linked(table)) == ""
            assert target.proc.link("fd/1") == "/dev/null"
            assert target.do(os.write, 1, b"x") == 1
    finally:
        os.close(master)
        os.close(slave)


def refuse_many(directory: str) -> None:
    put(os.open("/dev/null", os.O_RDWR), 0)
    read, write = os.pipe()
    os.closerange(3, read) if read > 3 else None
    put(os.dup(write), 30)  # both ends are inside
    put(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach(), 31)
    put(socket.socket(socket.AF_INET).detach(), 32)
    put(os.open(f"{directory}/block", os.O_RDONLY), 33) if os.path.exists(f"{directory}/block") else None
    put(int(libc.fanotify_init(0, 0)), 34)
    put(int(libc.syscall(425, 4, ctypes.create_string_buffer(120))), 35)  # io_uring_setup
    put(os.pidfd_open(os.getppid()), 36)
    put(os.open("/proc/self/ns/net", os.O_RDONLY), 37)
    put(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY), 38)
    settings = termios.tcgetattr(38)
    settings[3] |= 0o200000  # EXTPROC
    termios.tcsetattr(38, termios.TCSANOW, settings)
    path = f"{directory}/linked"
    put(os.open(path, os.O_RDWR | os.O_CREAT), 39)
    os.link(path, path + "2")
    os.unlink(path)
    os.mkdir(f"{directory}/dir")
    put(os.open(f"{directory}/dir", os.O_RDONLY), 40)
    os.rmdir(f"{directory}/dir")
    put(os.open(f"{directory}/lease", os.O_RDONLY | os.O_CREAT), 41)
    fcntl.fcntl(41, 1024, fcntl.F_RDLCK)
    put(os.open(directory, os.O_RDONLY), 42)
    fcntl.fcntl(42, 1026, 0x80000002)  # F_NOTIFY


def test_every_refusal_at_once(tmp_path: Path) -> None:
    with child() as source:
        source.do(refuse_many, str(tmp_path))
        _, problems = source.dump()
        found = {int(p.where.rsplit(" ", 1)[1]): p.what for p in problems}
        assert all(p.where.startswith(f"pid {source.pid} fd ") for p in problems)
        expected = {
            31: "socket",
            32: "socket",
            34: "fanotify group",
            35: "io_uring instance",
            36: f"pidfd of process or thread {os.getpid()}",
            37: "namespace net:[",
            38: "terminal whose lines somebody else edits",
            39: "file by a deleted name that has others",
            40: "deleted directory",
            41: "lease on",
            42: "directory with notification by signal",
        }
        assert sorted(found) == sorted(expected)
        for number, words in expected.items():
            assert words in found[number]


def test_pipe_that_leads_outside(tmp_path: Path) -> None:
    """Both ends inside, and one also here; and one end inside, the other in a process that we cannot see."""
    shared, hidden = os.pipe(), os.pipe()
    try:

        def setup() -> None:
            only({shared[0]: 10, shared[1]: 11, hidden[0]: 12})

        with held(setup) as (proc, pidfd):
            # our own process is left out of the search, so that of a pipe with one end only the hang-up can tell
            _, problems = DescriptorReader(proc, pidfd).dump(FROZEN)
            found = {p.where.split()[-1]: p.what for p in problems}
            assert found["12"] == "pipe to a process that we may not see has its writing end"
        with held(setup) as (other, _), held(setup) as (proc, pidfd):
            _, problems = DescriptorReader(proc, pidfd).dump(FROZEN)
            found = {p.where.split()[-1]: p.what for p in problems}
            assert found["10"] == found["11"] == f"pipe to process {other.pid}"
            _, problems = DescriptorReader(proc, pidfd, frozenset({other.pid})).dump(FROZEN)
            assert "10" not in {p.where.split()[-1] for p in problems}
    finally:
        for fd in (*shared, *hidden):
            os.close(fd)


def test_eventfd_shared_with_another_process() -> None:
    event = os.eventfd(0)
    try:
        with held(lambda: os.dup2(event, 40)) as (other, _), held(lambda: os.dup2(event, 41)) as (proc, pidfd):
            _, problems = DescriptorReader(proc, pidfd).dump(FROZEN)
            assert f"eventfd that process {other.pid} has open too" in [p.what for p in problems]
    finally:
        os.close(event)


def watch_stream() -> None:
    os.dup2(REQUEST, 0)
    put(int(libc.epoll_create1(0)), 3)
    assert libc.epoll_ctl(3, 1, 0, struct.pack("IQ", 1, 0)) == 0


def test_epoll_of_a_stream_is_refused() -> None:
    with child() as source:
        source.do(watch_stream)
        _, problems = source.dump()
        assert [p.what for p in problems] == ["epoll that watches descriptor 0, which leads outside"]


# Locks


def take_locks(path: str) -> None:
    put(os.open(path, os.O_RDWR), 3)
    put(os.open(path, os.O_RDONLY), 4)
    put(os.open(path + "2", os.O_RDWR), 5)
    fcntl.lockf(3, fcntl.LOCK_EX, 10, 5)
    fcntl.lockf(3, fcntl.LOCK_SH, 0, 100)
    fcntl.flock(5, fcntl.LOCK_EX)
    fcntl.fcntl(4, locks.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 50, 1, 0))


def who_has(path: str) -> list[str]:
    """What another process cannot have."""
    refused = []
    for name, file, start, length, how in (
        ("record", path, 5, 10, fcntl.LOCK_SH),
        ("rest", path, 1 << 40, 1, fcntl.LOCK_EX),
        ("ofd", path, 50, 1, fcntl.LOCK_EX),
        ("free", path, 20, 10, fcntl.LOCK_EX),
    ):
        fd = os.open(file, os.O_RDWR)
        try:
            fcntl.lockf(fd, how | fcntl.LOCK_NB, length, start)
        except BlockingIOError:
            refused.append(name)
        os.close(fd)
    fd = os.open(path + "2", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        refused.append("flock")
    os.close(fd)
    return refused


def program_of(write: Callable[[Program, tuple[locks.Lock, ...]], None], held: tuple[locks.Lock, ...]) -> object:
    program = Program("locks")
    write(program, held)
    return [program.link()]


def test_locks_are_handed_over(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    for name in (path, path + "2"):
        Path(name).write_bytes(bytes(200))
    everything = ["record", "rest", "ofd", "flock"]
    with child() as source, child() as target:
        source.do(take_locks, path)
        assert who_has(path) == everything
        table, problems = source.dump()
        assert problems == []
        assert len(table.locks) == 4
        assert who_has(path) == everything  # looking at descriptors drops no lock
        said = str(target.do(run_all, linked(table)))
        assert "lock" in said and "Resource temporarily unavailable" in said
    with child() as source, child() as target:
        source.do(take_locks, path)
        assert source.do(run_all, program_of(locks.release, table.locks)) == ""
        assert who_has(path) == []
        assert source.do(run_all, program_of(locks.restore, table.locks)) == ""  # called off
        assert who_has(path) == everything
        assert source.do(run_all, program_of(locks.release, table.locks)) == ""
        assert target.do(run_all, linked(table)) == ""
        assert who_has(path) == everything
        assert target.dump()[0].locks == table.locks


# cwd, root, umask


def go_somewhere(root: str, cwd: str) -> None:
    os.umask(0o137)
    os.chroot(root)
    os.chdir(cwd)
    put(os.open("/file", os.O_RDONLY), 3)


def test_cwd_root_and_umask(tmp_path: Path) -> None:
    (tmp_path / "jail" / "inner").mkdir(parents=True)
    (tmp_path / "jail" / "file").write_text("x")
    with child() as source, child() as target:
        source.do(go_somewhere, str(tmp_path / "jail"), "/inner")
        fs, problems = FsState.dump(source.proc, source.pidfd)
        assert problems == [] and fs == FsState(f"{tmp_path}/jail/inner", f"{tmp_path}/jail", 0o137)
        table, problems = source.dump()
        assert problems == []
        assert target.do(run_all, linked(table, fs=fs)) == ""
        assert FsState.dump(target.proc, target.pidfd) == (fs, [])
        assert target.do(os.getcwd) == "/inner"
        assert target.do(os.pread, 3, 10, 0) == b"x"


def enter_namespace(directory: str) -> None:
    assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
    assert libc.mount(b"none", directory.encode(), b"tmpfs", 0, None) == 0
    Path(f"{directory}/inside").write_text("x")
    put(os.open(f"{directory}/inside", os.O_RDONLY), 3)
    os.chdir(directory)
    put(int(libc.inotify_init1(0)), 4)
    assert libc.inotify_add_watch(4, f"{directory}/inside".encode(), 2) == 1


def test_paths_of_another_mount_namespace(tmp_path: Path) -> None:
    with child() as source, child() as target:
        source.do(enter_namespace, str(tmp_path))
        table, problems = source.dump()
        assert problems == []
        assert sorted(need.path for need in table.needs(1)) == [f"{tmp_path}/inside"] * 2
        assert FsState.dump(source.proc, source.pidfd)[1] == []
        target.do(enter_namespace, str(tmp_path))
        target.do(os.close, 3)
        target.do(os.close, 4)
        assert target.do(run_all, linked(table)) == ""


def hide(directory: str) -> None:
    put(os.open(f"{directory}/file", os.O_RDONLY), 3)
    assert libc.unshare(0x20000) == 0
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
    assert libc.mount(b"none", directory.encode(), b"tmpfs", 0, None) == 0


def test_file_under_a_mount_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with child() as source:
        source.do(hide, str(tmp_path))
        _, problems = source.dump()
        assert [p.what for p in problems] == [f"file that its path does not lead to ({tmp_path}/file)"]


def test_deleted_cwd_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    with child() as source:
        source.do(os.chdir, str(tmp_path / "gone"))
        (tmp_path / "gone").rmdir()
        fs, problems = FsState.dump(source.proc, source.pidfd)
        assert fs is None and [p.where for p in problems] == [f"pid {source.pid} cwd"]


def test_numbers_of_the_restorer_are_kept(tmp_path: Path) -> None:
    """Descriptors above the soft limit, and right where temporary ones would go."""
    with child() as source:
        source.do(high_numbers)
        with moved(source) as target:
            assert target.do(os.read, LOW + 1, 10) == b"high"
        with pytest.raises(ValueError, match=f"descriptors \\[{LOW}\\]"):
            source.dump()[0].plan(Context(frozenset({LOW}), LOW))


def high_numbers() -> None:
    read, write = os.pipe()
    put(read, LOW + 1)
    put(write, LOW)
    os.write(LOW, b"high")
    put(os.memfd_create("one"), LOW + 3)


def test_unshared_table_of_a_thread_is_refused() -> None:
    with child() as source:
        source.do(start_lone_thread)
        _, problems = source.dump()
        assert [p.what for p in problems] == ["thread with a descriptor table of its own (CLONE_FILES unshared)"]


def start_lone_thread() -> None:
    ready = threading.Event()

    def alone() -> None:
        assert libc.unshare(0x400) == 0
        ready.set()
        threading.Event().wait()

    threading.Thread(target=alone, daemon=True).start()
    assert ready.wait(5)

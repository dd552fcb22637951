"""Proc: one directory, held open; it never tells about a stranger."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from migrate.engine.kernel.proc import Proc


def test_reads_links_and_names() -> None:
    with Proc(os.getpid()) as process:
        assert process.read("cmdline") == Path("/proc/self/cmdline").read_bytes()
        assert process.text("comm") == Path("/proc/self/comm").read_text()
        assert process.link("exe") == os.readlink("/proc/self/exe")
        assert set(process.names("fd")) >= {"0", "1", "2"}
        assert process.stat("cwd").st_ino == os.stat(".").st_ino
        assert os.getpid() in process.tids()


def test_large_files_are_read_whole() -> None:
    with Proc(os.getpid()) as process, open("/proc/self/smaps", "rb") as file:
        assert process.read("smaps").count(b"VmFlags") == file.read().count(b"VmFlags")


def test_names_that_are_not_utf8() -> None:
    with Proc(os.getpid()) as process:
        before = Path("/proc/self/comm").read_bytes()
        Path("/proc/self/comm").write_bytes(b"x\xff")
        try:
            assert process.text("comm").encode("utf-8", "surrogateescape") == b"x\xff\n"
        finally:
            Path("/proc/self/comm").write_bytes(before.rstrip(b"\n"))


def test_a_thread() -> None:
    done, started, tids = threading.Event(), threading.Event(), list[int]()

    def run() -> None:
        tids.append(threading.get_native_id())
        started.set()
        done.wait()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        with Proc(os.getpid()) as process, process.thread(tids[0]) as found:
            assert (found.pid, found.path) == (tids[0], f"/proc/{os.getpid()}/task/{tids[0]}")
            assert f"Pid:\t{tids[0]}\n" in found.text("status")
            assert tids[0] in process.tids()
    finally:
        done.set()
        thread.join()


def test_the_dead_stay_dead() -> None:
    child = subprocess.Popen(["sleep", "60"])
    with Proc(child.pid) as process:
        # execve(2) lets the parent go on, and closes its pipe, a moment before it sets the name (begin_new_exec)
        deadline = time.monotonic() + 5
        while process.text("comm") != "sleep\n":
            assert time.monotonic() < deadline
        child.kill()
        child.wait()
        for call in (process.read, process.link, process.names, process.stat):
            with pytest.raises((FileNotFoundError, ProcessLookupError)) as caught:
                call("exe" if call == process.link else "task")
            assert str(caught.value.filename).startswith(f"/proc/{child.pid}/")


def test_errors_name_the_file_and_closing_closes() -> None:
    process = Proc(os.getpid())
    with pytest.raises(FileNotFoundError, match=f"/proc/{os.getpid()}/nothing"):
        process.read("nothing")
    fd = process.fd
    process.close()
    process.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(FileNotFoundError):
        Proc(1 << 22)


def test_refused_because_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says of a link of a task that ends meanwhile what it says where there is no right to look."""

    def refused(*arguments: object, **more: object) -> str:
        raise PermissionError(13, "Permission denied")

    with subprocess.Popen(["sleep", "100"]) as child, Proc(child.pid) as process:
        monkeypatch.setattr(os, "readlink", refused)
        for name in ("ns/mnt", f"task/{child.pid}/ns/mnt"):
            with pytest.raises(PermissionError):
                process.link(name)
        child.kill()
        child.wait()
        for name in ("ns/mnt", f"task/{child.pid}/ns/mnt"):
            with pytest.raises(ProcessLookupError):
                process.link(name)

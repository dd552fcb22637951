"""Each reason not to trace a process has its own sentence."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agents import ia32
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.tracee import inspection
from migrate.engine.tracee.inspection import why_not_traceable
from migrate.engine.tracee.tree import Tracee
from tests.kernel.tracees import running
from tests.victims import Victims


def _sentence(pid: int) -> str:
    return "\n".join(map(str, why_not_traceable(pid)))


def test_an_ordinary_process(victims: Victims) -> None:
    with running(victims("sleepers"), "3") as victim:
        assert why_not_traceable(victim.pid) == []
        victim.finish()


def test_missing() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert "there is no such process" in _sentence(child)
    assert "above 0" in _sentence(0)


def test_a_zombie() -> None:
    with running("true", ready=False) as victim:
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        assert "it is a zombie" in _sentence(victim.pid)
        assert str(os.getpid()) in _sentence(victim.pid)


def test_ourselves_and_our_ancestors() -> None:
    assert "this program itself" in _sentence(os.getpid())
    assert "this program was started by it" in _sentence(os.getppid())
    assert "this program was started by it" in _sentence(1) or os.getppid() == 0


def test_a_kernel_thread() -> None:
    for path in Path("/proc").glob("[0-9]*"):
        if path.joinpath("stat").read_text().rpartition(")")[2].split()[1] == "2":
            assert "it is a kernel thread" in _sentence(int(path.name))
            return
    raise AssertionError("this machine has no kernel threads in sight")


def test_traced_already(victims: Victims) -> None:
    with running(victims("sleepers"), "3") as victim, Tracee(victim.pid) as tracee:
        tracee.stop()
        assert f"it is traced already, by process {os.getpid()}" in _sentence(victim.pid)
        tracee.resume()
        assert why_not_traceable(victim.pid) == []


def test_a_thread_of_another_process(victims: Victims) -> None:
    with running(victims("sleepers"), "3") as victim:
        tid = next(tid for tid in victim.tids() if tid != victim.pid)
        assert f"it is a thread of process {victim.pid}" in _sentence(tid)


def test_another_user() -> None:
    with running("sleep", "100", ready=False) as victim:
        said = _as_nobody(lambda: _sentence(victim.pid))
        assert "it belongs to user 0, we run as user 65534" in said


def test_its_own_process_a_user_may_trace() -> None:
    def trace_a_child() -> str:
        with running("sleep", "100", ready=False) as victim:
            time.sleep(0.05)
            with Tracee(victim.pid) as tracee:
                tracee.stop()
                assert tracee.remote_syscall(victim.pid, NUMBERS["getpid"]) == victim.pid
            return _sentence(victim.pid) or "it may"

    assert _as_nobody(trace_a_child) == "it may"


def _as_nobody(work: Callable[[], str]) -> str:
    """What ``work`` says, done as nobody; forked, because nobody may not read the interpreter everywhere."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_a_32_bit_program(tmp_path: Path) -> None:
    """Is one as others are."""
    program = tmp_path / "pause32"
    program.write_bytes(ia32.program())
    program.chmod(0o755)
    with subprocess.Popen([program], stdout=subprocess.PIPE) as victim:
        try:
            assert victim.stdout is not None and victim.stdout.read(1)
            assert not why_not_traceable(victim.pid)
        finally:
            victim.kill()


def test_a_foreign_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which only an emulator could run here."""
    monkeypatch.setattr(inspection, "machine", lambda head: (2, 183))
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            assert "it runs a foreign program" in _sentence(victim.pid)
        finally:
            victim.kill()

"""Namespaces that a process has made for itself: moved, or refused by name before anything is touched. And what traces
it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.engine.hostname import HostNames
from migrate.engine.program.ops import Check
from tests.driven import fresh_directory
from tests.kernel.actors import Actor, syscall
from tests.kernel.checkpoints import Job, Keep, dump, keeping, migrate, restore
from tests.tasks import children, status_field, wait_until
from tests.victims import Victims

LATER = "import ctypes, time\nassert ctypes.CDLL(None).unshare({:#x}) == 0\ntime.sleep(1000)\n"
ALONE = (
    "import ctypes, threading, time\n"
    "other = threading.Thread(target=lambda: (ctypes.CDLL(None).unshare(0x4000000), time.sleep(1000)))\n"
    "other.start()\n"
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Ends what it is given."""
    with keeping() as add:
        yield add


def refused(job: Job, directory: Path, *words: str) -> None:
    """An AssertionError unless all of that is said, and it goes on untraced."""
    _, err = migrate("dump", str(job.pid), directory / "checkpoint", code=3)
    assert "nothing was changed" in err
    for each in words:
        assert each in err, err
    assert job.alive and not any((directory / "checkpoint").glob("*"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--user", "is in a user namespace (user:["),
        ("--net", "is in a network namespace (net:["),
        ("--cgroup", "is in a cgroup namespace (cgroup:["),
    ],
)
def test_of_its_own(option: str, words: str, tmp_path: Path, keep: Keep) -> None:
    job = keep(Job.start("unshare", option, "sleep", "1000"))
    wait_until("asleep", lambda: status_field(job.pid, "Name") == ["sleep"])
    refused(job, tmp_path, f"pid {job.pid}: {words}", "that is not ours", "nsenter")


def test_ipc_namespace_of_others_as_well(tmp_path: Path, keep: Keep) -> None:
    """Refused for who stays behind in it, and not for being another one: then they get one there, too."""
    job = keep(Job.start("unshare", "--ipc", "sleep", "1000"))
    wait_until("asleep", lambda: status_field(job.pid, "Name") == ["sleep"])
    other = keep(Job.start("nsenter", f"--ipc=/proc/{job.pid}/ns/ipc", "sleep", "1000"))
    wait_until("asleep", lambda: status_field(other.pid, "Name") == ["sleep"])
    words = f"pid {job.pid}: is in an IPC namespace (ipc:[", f"with process {other.pid}, which stays behind", "nsenter"
    refused(job, tmp_path, *words)
    other.close()
    dump(job, tmp_path / "alone")
    again = keep(restore(tmp_path / "alone")[0])
    assert os.readlink(f"/proc/{again.pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")


def test_mounts_of_its_own(tmp_path: Path, keep: Keep) -> None:
    """Refused for what is mounted there, not for being another namespace."""
    room = tmp_path / "room"
    room.mkdir()
    mounts = f"mount -t tmpfs none {room} && exec sleep 1000"
    job = keep(Job.start("unshare", "--mount", "sh", "-c", mounts))
    wait_until("asleep", lambda: status_field(job.pid, "Name") == ["sleep"])
    refused(job, tmp_path, f"pid {job.pid}: is in a mount namespace (mnt:[", f"where {room} is mounted")
    same = keep(Job.start("unshare", "--mount", "sleep", "1000"))
    wait_until("asleep", lambda: status_field(same.pid, "Name") == ["sleep"])
    dump(same, tmp_path / "same")
    again, _ = restore(tmp_path / "same")
    keep(again)


def names(pid: int) -> list[str]:
    files = ["/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"]
    shown = subprocess.run(["nsenter", f"--target={pid}", "--uts", "cat", *files], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.split()


def test_host_name_of_its_own(tmp_path: Path, keep: Keep) -> None:
    """Of parent and child, in one namespace; ours keeps its own. And once more, from where it was restored."""
    ours = socket.gethostname()
    renamed = "echo moving.example > /proc/sys/kernel/hostname; echo far > /proc/sys/kernel/domainname"
    script = f"{renamed}; sleep 1000; exit 0"
    job = keep(Job.start("unshare", "--uts", "sh", "-c", script))
    wait_until("asleep", lambda: [status_field(pid, "Name") for pid in children(job.pid)] == [["sleep"]])
    for number in ("first", "second"):
        dump(job, tmp_path / number)
        job, _ = restore(tmp_path / number)
        keep(job)
        (child,) = children(job.pid)
        assert names(job.pid) == ["moving.example", "far"] and socket.gethostname() == ours
        assert os.readlink(f"/proc/{child}/ns/uts") == os.readlink(f"/proc/{job.pid}/ns/uts")
        assert os.readlink("/proc/self/ns/uts") != os.readlink(f"/proc/{job.pid}/ns/uts")
    os.kill(child, signal.SIGKILL)
    job.wait_gone()


def powerless() -> None:
    """capset(2): nothing but CAP_SYS_ADMIN is given up."""
    caps = struct.pack("<6I", *(word & ~bit for word, bit in zip(own(), (1 << 21, 1 << 21, 0, 0, 0, 0), strict=True)))
    syscall("capset", struct.pack("<Ii", 0x20080522, 0), caps)


def own() -> tuple[int, ...]:
    caps = bytearray(24)
    syscall("capget", struct.pack("<Ii", 0x20080522, 0), caps)
    return struct.unpack("<6I", caps)


def test_a_host_that_gives_no_names() -> None:
    """The first op fails, so that the host is not given a name in place of the namespace."""
    program = HostNames(b"moving", b"far").enter()
    assert [op.name for op in program.branches[0]] == ["unshare", "sethostname", "setdomainname"]
    with Actor() as there:
        there.call(powerless)
        assert there.attempt(program) == ("UTS namespace with the name moving", -errno.EPERM)
    assert {op.check for op in program.branches[0]} == {Check.OK}
    assert socket.gethostname() != "moving"


@pytest.mark.parametrize(("flag", "word"), [(0x20000000, "PID"), (0x80, "time")])
def test_of_its_next_child(flag: int, word: str, tmp_path: Path, keep: Keep) -> None:
    job = keep(Job.start(sys.executable, "-c", LATER.format(flag)))
    kind = "pid" if word == "PID" else "time"

    def left() -> bool:
        try:
            return os.readlink(f"/proc/{job.pid}/ns/{kind}_for_children") != os.readlink(f"/proc/{job.pid}/ns/{kind}")
        except FileNotFoundError:
            return True

    wait_until("unshared", left)
    refused(job, tmp_path, f"its next child would be in another {word} namespace")


@pytest.mark.parametrize("option", ["--uts", "--net", "--time", "--pid"])
def test_of_a_child(option: str, tmp_path: Path, keep: Keep) -> None:
    job = keep(Job.start("sh", "-c", f"unshare {option} --fork sleep 1000; exit 0"))

    def asleep() -> list[int]:
        below = [pid for child in children(job.pid) for pid in children(child)]
        return [pid for pid in below if status_field(pid, "Name") == ["sleep"]]

    wait_until("asleep", lambda: bool(asleep()))
    name = option.removeprefix("--")
    try:
        refused(job, tmp_path, f"is in another {name} namespace than process {job.pid}")
    finally:
        for pid in asleep():
            os.kill(pid, signal.SIGKILL)
    job.wait_gone()


def test_of_a_thread(tmp_path: Path, keep: Keep) -> None:
    job = keep(Job.start(sys.executable, "-c", ALONE))

    def alone() -> list[str]:
        mine = os.readlink(f"/proc/{job.pid}/ns/uts")
        tids = os.listdir(f"/proc/{job.pid}/task")
        return [tid for tid in tids if os.readlink(f"/proc/{job.pid}/task/{tid}/ns/uts") != mine]

    wait_until("alone", lambda: bool(alone()))
    refused(job, tmp_path, f"thread {alone()[0]}: is in a UTS namespace of its own")


def test_traced_inside_of_the_tree(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """As under strace(1) or gdb(1): by name, and the tracer keeps its tracee."""
    directory, own = fresh_directory(tmp_path)
    with open(directory / "out", "w") as out:
        job = keep(Job.start(victims("refused"), "tracee", stdout=out, env={**os.environ, **own}))
    wait_until("ready", lambda: "ready\n" in (directory / "out").read_text())
    (tracee,) = children(job.pid)
    refused(job, tmp_path, f"process {tracee}: it is traced already, by process {job.pid} (refused")
    assert status_field(tracee, "TracerPid") == [str(job.pid)]
    job.close()
    wait_until("the end of its tracee", lambda: os.waitpid(tracee, os.WNOHANG)[0])

"""Seccomp: what is read of it, what is installed by whom, and processes under it that go to the disk and come back."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from migrate.engine.kinds.seccomp import FLAG_LOG, FLAG_TSYNC, Filter, Install, Seccomp, layout, plan
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.inspection import why_not_traceable
from migrate.engine.tracee.tree import Tracee
from tests.driven import Driven, fresh_directory
from tests.kernel.checkpoints import Job, Keep, dump, keeping, migrate, restore
from tests.tasks import status_field, wait_until
from tests.victims import Victims

RIGHTS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
    "Seccomp_filters", "Speculation_Store_Bypass")  # fmt: skip
# One fails where the first of a pair would have to wait for the other
PYTHON = """
import ctypes, errno, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
code = b"".join(struct.pack("<HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 83), (6, 0, 0, 0x50000 | errno.EDQUOT), (6, 0, 0, 0x7FFF0000)))
buffer = ctypes.create_string_buffer(code)
program = struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
def look():
    try:
        os.mkdir(sys.argv[1] + "/made")
    except OSError as error:
        assert error.errno == errno.EDQUOT, error
    else:
        raise AssertionError("a directory was made")
look()
print("ready", flush=True)
while not os.path.exists(os.environ["VICTIM_GO"]):
    time.sleep(0.001)
look()
print("pass", flush=True)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Ends what it is given."""
    with keeping() as add:
        yield add


def start(keep: Keep, base: Path, *command: str) -> tuple[Job, Driven]:
    """A victim that is ready, with files for its streams."""
    directory, own = fresh_directory(base)
    for path in (base, *base.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)  # it may be another user's soon
    with open(directory / "out", "w") as out, open(directory / "err", "w") as err:
        job = keep(Job.start(*command, stdout=out, stderr=err, env={**os.environ, **own}))
    driven = Driven(command[0], directory)
    wait_until("ready", lambda: "ready\n" in driven.out or not job.alive)
    assert job.alive, driven.complaint
    return job, driven


def look(pid: int) -> Mapping[int, tuple[object, ...]]:
    """What each thread is under, by number."""
    found = {}
    with Tracee(pid) as tracee:
        tracee.stop()
        for tid in tracee.tids:
            filters = ptrace.seccomp_filters(tid) if status_field(tid, "Seccomp") == ["2"] else []
            found[tid] = (filters, *(tuple(status_field(tid, name)) for name in RIGHTS))
        tracee.resume()
    return found


@pytest.mark.parametrize("kind", ["filter", "stacked", "threads", "synced", "privileged"])
def test_to_disk_and_back(kind: str, victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """The very same filters, in each thread; and each forbids what it did. A dump that lets it run on leaves them."""
    job, driven = start(keep, tmp_path, victims("confined"), kind)
    before = look(job.pid)
    dump(job, tmp_path / "first", "--leave-running")
    assert look(job.pid) == before
    dump(job, tmp_path / "second")
    again, _ = restore(tmp_path / "second")
    keep(again)
    assert look(again.pid) == before
    driven.tell()
    again.wait_gone()
    assert not driven.err and driven.out.endswith("pass\n"), driven.complaint


def test_what_stays_behind_is_as_it_was(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """The one that runs on is asked, not the copy."""
    job, driven = start(keep, tmp_path, victims("confined"), "synced")
    dump(job, tmp_path / "checkpoint", "--leave-running")
    driven.tell()
    job.wait_gone()
    assert not driven.err and driven.out.endswith("pass\n"), driven.complaint


def test_strict_mode(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """A process that may read, write and end, and computes."""
    job, driven = start(keep, tmp_path, victims("confined"), "strict")
    wait_until("strict", lambda: status_field(job.pid, "Seccomp") == ["1"])
    dump(job, tmp_path / "checkpoint")
    again, _ = restore(tmp_path / "checkpoint")
    keep(again)
    assert status_field(again.pid, "Seccomp") == ["1"]
    count = (driven.directory / "count").stat().st_size
    wait_until("it counts on", lambda: (driven.directory / "count").stat().st_size > count + 80 or not again.alive)
    (driven.directory / "word").write_text("x")
    again.wait_gone()
    assert driven.out.endswith("pass\n"), driven.complaint


def test_a_script_that_confines_itself(tmp_path: Path, keep: Keep) -> None:
    job, driven = start(keep, tmp_path, sys.executable, "-c", PYTHON, str(tmp_path))
    before = look(job.pid)
    dump(job, tmp_path / "checkpoint")
    again, _ = restore(tmp_path / "checkpoint")
    keep(again)
    assert look(again.pid) == before
    driven.tell()
    again.wait_gone()
    assert not driven.err and driven.out.endswith("pass\n"), driven.complaint


def test_a_listener_is_refused(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """By its filter, also where somebody else has the descriptor."""
    job, _ = start(keep, tmp_path, victims("refused"), "notifying")
    _, err = migrate("dump", str(job.pid), tmp_path / "checkpoint", code=3)
    assert f"thread {job.pid}: has a seccomp filter that asks another process" in err
    assert job.alive and status_field(job.pid, "TracerPid") == ["0"]


def test_without_the_right(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    job, _ = start(keep, tmp_path, victims("confined"), "filter")
    script = "import sys\nfrom migrate.engine.tracee.inspection import *\nprint(why_not_traceable(int(sys.argv[1])))\n"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script]
    said = subprocess.run([*command, str(job.pid)], capture_output=True, text=True, check=True).stdout
    assert f"its thread {job.pid} is under seccomp, which only CAP_SYS_ADMIN may look at" in said and "NoRights" in said
    assert why_not_traceable(job.pid) == []


def _code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<HBBI", *each) for each in instructions)


A, B, C = (Filter(flags, _code((6, 0, 0, 0x7FFF0000 + flags))) for flags in (0, FLAG_LOG, 4))


def test_what_is_common_is_installed_once() -> None:
    """By a thread without no_new_privs, if there is one, which would pass it on."""
    one, other = Seccomp(2, (A, B)), Seccomp(2, (A, C))
    assert plan([(one, True), (other, False)]) == [Install(1, A, FLAG_TSYNC), Install(0, B), Install(1, C)]
    assert plan([(one, True), (Seccomp(), False)]) == [Install(0, A), Install(0, B)]
    assert plan([(one, True)]) == [Install(0, A), Install(0, B)]
    assert plan([(Seccomp(1), False), (Seccomp(), False)]) == [Install(0, None)]
    assert plan([(Seccomp(), True)]) == []


def test_programs_lie_where_they_point_to() -> None:
    installs = [Install(0, A, FLAG_TSYNC), Install(0, B), Install(1, B)]
    content, places = layout(installs, 0x1000)
    assert places == {A.code: 0x1000, B.code: 0x1018}
    for each in (A, B):
        count, at = struct.unpack_from("<HxxxxxxQ", content, places[each.code] - 0x1000)
        assert content[at - 0x1000 :][: count * 8] == each.code
    assert installs[0].call(places) == (1, 5, 0x1000) and installs[1].call(places) == (1, 6, 0x1018)


def test_problems() -> None:
    state = Seccomp(2, (A,))
    assert state.problems("thread 1", 1 << 21, 0) == [] == Seccomp().problems("thread 1", 0, None)
    assert "kernel lacks" in state.problems("thread 1", 1 << 21, None)[0].what
    assert "may not suspend" in state.problems("thread 1", 0, 0)[0].what
    assert "may not suspend" in state.problems("thread 1", 1 << 21, 2)[0].what
    assert state.refusals("thread 1") == [] and "does not show" in Seccomp(2).refusals("thread 1")[0].what
    computed = Filter(0, _code((0, 0, 0, 0x7FC00000), (0x16, 0, 0, 0)))  # BPF_LD | BPF_IMM, BPF_RET | BPF_A
    assert computed.notifies and not A.notifies

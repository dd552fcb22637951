"""status, stat, limits, timers, auxv, fdinfo."""

from __future__ import annotations

import os
import re
import resource
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.kernel.accounting import RESOURCES, RLIM_INFINITY, Limit, PosixTimer, auxv, limits, timers
from migrate.engine.kernel.fdinfo import fdinfo, pairs
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kernel.stat import Stat, stat
from migrate.engine.kernel.status import status

STATUS = """\
Name:\ta\\nb\\\\ c
Umask:\t0027
State:\tT (stopped)
Tgid:\t812
Ngid:\t0
Pid:\t813
PPid:\t1
TracerPid:\t77
Uid:\t1\t2\t3\t4
Gid:\t5\t6\t7\t8
FDSize:\t256
Groups:\t10 20 
NStgid:\t812\t1
NSpid:\t813\t2
NSpgid:\t812\t1
NSsid:\t800\t0
Kthread:\t0
VmPeak:\t    3060 kB
VmLck:\t       8 kB
CoreDumping:\t0
THP_enabled:\t1
untag_mask:\t0xffffffffffffffff
Threads:\t3
SigQ:\t2/96365
SigPnd:\t0000000000000001
ShdPnd:\t0000000000000002
SigBlk:\t0000000000000004
SigIgn:\t0000000000000008
SigCgt:\t8000000000000000
CapInh:\t0000000000000000
CapPrm:\t000001fffeffffff
CapEff:\t000001fffeffffff
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
Speculation_Store_Bypass:\tthread vulnerable
SpeculationIndirectBranch:\talways enabled
Cpus_allowed:\tff,00000003
Cpus_allowed_list:\t0-1
Mems_allowed:\t00000000,00000001
Mems_allowed_list:\t0
voluntary_ctxt_switches:\t5
nonvoluntary_ctxt_switches:\t6
x86_Thread_features:\tshstk wrss 
x86_Thread_features_locked:\tshstk 
"""  # noqa: W291 - as the kernel prints it


def test_status() -> None:
    found = status(STATUS)
    assert found.name == "a\nb\\ c"
    assert (found.umask, found.state, found.tgid, found.pid, found.ppid) == (0o27, "T", 812, 813, 1)
    assert (found.tracer_pid, found.uids, found.gids, found.groups) == (77, (1, 2, 3, 4), (5, 6, 7, 8), (10, 20))
    assert (found.ns_tgid, found.ns_pid, found.ns_sid) == ((812, 1), (813, 2), (800, 0))
    assert (found.threads, found.sig_q, found.sig_cgt, found.shd_pnd) == (3, (2, 96365), 1 << 63, 2)
    assert (found.cap_eff, found.no_new_privs, found.seccomp, found.seccomp_filters) == (0x1FFFEFFFFFF, True, 2, 3)
    assert (found.cpus_allowed, found.mems_allowed, found.thp_enabled) == (0xFF00000003, 1, True)
    assert (found.vm, found.vm_lck, found.kthread) == ({"VmPeak": 3060, "VmLck": 8}, 8, False)
    assert sorted(found.x86_features) == ["shstk", "wrss"]
    assert sorted(found.x86_features_locked) == ["shstk"]
    assert found.speculation_store_bypass == "thread vulnerable"


OPTIONAL = {
    *("Umask", "Kthread", "THP_enabled", "CoreDumping", "Seccomp", "Seccomp_filters", "untag_mask", "FDSize", "Ngid"),
    *("Speculation_Store_Bypass", "SpeculationIndirectBranch", "VmPeak", "VmLck", "Cpus_allowed_list"),
    *("Mems_allowed_list", "x86_Thread_features", "x86_Thread_features_locked"),
}


@pytest.mark.parametrize("name", [line.partition(":")[0] for line in STATUS.splitlines()])
def test_a_line_that_is_missing(name: str) -> None:
    text = "".join(line for line in STATUS.splitlines(keepends=True) if not line.startswith(name + ":"))
    if name in OPTIONAL:
        status(text)
    else:
        with pytest.raises(ProcFormatError, match=f"^/proc/PID/status: no line '{name}'$"):
            status(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Threads:\t3", "Threads:\tx", "Threads is 'x', not a decimal number"),
        ("Umask:\t0027", "Umask:\t9", "Umask is '9', not an octal number"),
        ("SigBlk:\t0000000000000004", "SigBlk:\tg", "SigBlk is 'g', not a hexadecimal number"),
        ("Uid:\t1\t2\t3\t4", "Uid:\t1\t2\t3", "Uid has 3 numbers, not 4"),
        ("SigQ:\t2/96365", "SigQ:\t2", "SigQ is '2', not queued/limit"),
        ("Threads:\t3", "no colon", "a line without a colon: 'no colon'"),
    ],
)
def test_a_line_that_is_odd(old: str, new: str, message: str) -> None:
    assert old in STATUS
    with pytest.raises(ProcFormatError) as caught:
        status(STATUS.replace(old, new))
    assert str(caught.value) == f"/proc/PID/status: {message}"


comm = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=15)


@given(comm)
def test_any_name_in_status(name: str) -> None:
    shown = name.replace("\\", "\\\\").replace("\n", "\\n")  # proc_task_name(): these two, no others
    assert status(STATUS.replace("a\\nb\\\\ c", shown)).name == name


@given(comm, st.lists(st.integers(-(1 << 40), (1 << 64) - 1), min_size=49, max_size=60))
def test_any_name_in_stat(name: str, numbers: list[int]) -> None:
    found = stat(f"812 ({name}) S {' '.join(map(str, numbers))}\n")
    assert (found.pid, found.comm, found.state) == (812, name, "S")
    assert list(found[3:]) == numbers[:49]


def test_stat_of_ours_and_bad_ones() -> None:
    with open("/proc/self/stat") as file:
        found = stat(file.read())
    assert len(Stat._fields) == 52
    assert (found.pid, found.ppid, found.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert found.nice == os.getpriority(os.PRIO_PROCESS, 0)
    with pytest.raises(ProcFormatError, match="no comm in parentheses"):
        stat("812 S 1")
    with pytest.raises(ProcFormatError, match="4 fields, not 52"):
        stat("812 (a) S 1")
    with pytest.raises(ProcFormatError, match="minflt is 'x', not a decimal"):
        stat("812 (a) S 1 1 1 1 1 1 x" + " 0" * 42)


def test_limits_of_ours() -> None:
    with open("/proc/self/limits") as file:
        found = limits(file.read())
    assert len(found) == resource.RLIM_NLIMITS if hasattr(resource, "RLIM_NLIMITS") else 16
    for number, limit in found.items():
        expected = resource.getrlimit(number)
        assert limit == tuple(RLIM_INFINITY if value == resource.RLIM_INFINITY else value for value in expected)
    assert found[resource.RLIMIT_NOFILE].soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@given(st.lists(st.tuples(*[st.one_of(st.just(RLIM_INFINITY), st.integers(0, 1 << 62))] * 2), min_size=16, max_size=16))
def test_limits(values: list[tuple[int, int]]) -> None:
    def word(value: int) -> str:
        return "unlimited" if value == RLIM_INFINITY else str(value)

    rows = zip(RESOURCES, values, strict=True)
    text = f"{'Limit':26}{'Soft Limit':21}{'Hard Limit':21}{'Units':10}\n" + "".join(
        f"{name:25} {word(soft):20} {word(hard):20} {'' if 'priority' in name else 'bytes':10}\n"
        for name, (soft, hard) in rows
    )
    assert limits(text) == {number: Limit(*pair) for number, pair in enumerate(values)}
    with pytest.raises(ProcFormatError, match="no line 'Max realtime timeout'"):
        limits("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(ProcFormatError, match="not a limit: 'Max nonsense 1 2'"):
        limits(text + "Max nonsense 1 2\n")


timer = st.builds(
    PosixTimer,
    st.integers(0, 1 << 31),
    st.integers(0, 64),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(["signal", "none", "thread"]),
    st.booleans(),
    st.integers(0, 1 << 22),
    st.integers(-(1 << 20), 11),
)


@given(st.lists(timer, max_size=5))
def test_timers(expected: list[PosixTimer]) -> None:
    text = "".join(
        f"ID: {t.id}\nsignal: {t.signal}/{t.value:016x}\n"
        f"notify: {t.notify}/{'tid' if t.thread else 'pid'}.{t.target}\nClockID: {t.clock}\n"
        for t in expected
    )
    assert timers(text) == expected
    with pytest.raises(ProcFormatError, match="not a timer"):
        timers(text + "ID: x\n")


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, (1 << 64) - 1)), max_size=20))
def test_auxv(expected: list[tuple[int, int]]) -> None:
    content = b"".join(struct.pack("<QQ", *pair) for pair in expected)
    assert auxv(content + bytes(16) + b"\7" * 32) == expected
    if expected:
        with pytest.raises(ProcFormatError, match="no AT_NULL"):
            auxv(content)
    with pytest.raises(ProcFormatError, match="not a multiple of 16"):
        auxv(content + b"x")


def test_auxv_of_ours() -> None:
    with open("/proc/self/auxv", "rb") as file:
        assert dict(auxv(file.read()))[6] == os.sysconf("SC_PAGE_SIZE")


def test_fdinfo_of_real_files() -> None:
    def of(fd: int) -> str:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            return file.read()

    with open(__file__, "rb") as file:
        file.seek(7)
        found = fdinfo(of(file.fileno()))
        assert (found.pos, found.flags & os.O_ACCMODE) == (7, os.O_RDONLY)
        assert found.flags & os.O_CLOEXEC
        assert found.ino == os.fstat(file.fileno()).st_ino
        assert found.lines == {}
    reader, writer = os.pipe()
    epoll = __import__("select").epoll()
    try:
        epoll.register(reader)
        epoll.register(writer, 0)
        lines = fdinfo(of(epoll.fileno())).lines["tfd"]
        assert sorted(int(pairs(line)[""]) for line in lines) == sorted([reader, writer])
        assert pairs(lines[0]).keys() >= {"events", "data", "pos", "ino", "sdev"}
    finally:
        epoll.close()
        os.close(reader)
        os.close(writer)


def test_fdinfo_lines_of_a_kind() -> None:
    found = fdinfo(
        "pos:\t-1\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n"
        "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e\n"
        "inotify wd:2 ino:a111 sdev:800013 mask:800afce\n"
        "it_value: (0, 49406829)\neventfd-count:                5\n"
    )
    assert (found.pos, found.mnt_id, found.ino) == (-1, 15, 1057)
    assert [pairs(line)["wd"] for line in found.lines["inotify"]] == ["3", "2"]
    assert found.one("it_value") == "(0, 49406829)"
    assert found.one("eventfd-count") == "5"
    with pytest.raises(ProcFormatError, match="2 lines 'inotify', not one"):
        found.one("inotify")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pos:\t0\nflags:\t02\n", "0 lines 'mnt_id', not one"),
        ("pos:\tx\nflags:\t02\nmnt_id:\t1\n", "pos is 'x', not a decimal number"),
        ("pos:\t0\nflags:\t8\nmnt_id:\t1\n", "flags is '8', not an octal number"),
        ("pos:\t0\npos:\t0\nflags:\t02\nmnt_id:\t1\n", "2 lines 'pos', not one"),
        ("nonsense\n", "a line without a colon: 'nonsense'"),
    ],
)
def test_fdinfo_errors(text: str, message: str) -> None:
    with pytest.raises(ProcFormatError, match=re.escape(f"/proc/PID/fdinfo: {message}")):
        fdinfo(text)


@pytest.mark.parametrize("parse", [status, stat, limits, timers, fdinfo])
@given(text=st.text(max_size=100))
def test_anything_else_is_an_error_of_its_own_kind(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ProcFormatError:
        pass

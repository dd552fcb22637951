"""Can this process be traced at all? Asked before anything is touched, and answered with every reason at once."""

from __future__ import annotations

import os
from pathlib import Path

from migrate.engine.kernel.executable import IA32, X86_64, machine
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kernel.stat import PF_KTHREAD, Stat, stat
from migrate.engine.kernel.status import Status, status
from migrate.engine.tracee.claim import claimed
from migrate.errors import Problem

_CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 1 << 19, 1 << 21  # linux/capability.h
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


class NoRights(Problem):
    """It could be traced with more rights than ours."""


def why_not_traceable(pid: int) -> list[Problem]:
    """The reasons, in words; none: it can be. A process may still change its mind, or end, before it is stopped."""
    where = f"process {pid}"
    if pid <= 0:
        return [Problem(where, "a process number is above 0")]
    try:
        with Proc(pid) as proc:
            return _reasons(proc, where)
    except (FileNotFoundError, ProcessLookupError):
        return [Problem(where, "there is no such process")]


def _reasons(proc: Proc, where: str) -> list[Problem]:
    its, numbers = status(proc.text("status")), stat(proc.text("stat"))
    first = _not_a_process(proc.pid, its, numbers, where)
    if first is not None:
        return [first]
    # Another migration is its tracer, too, and has more to say.
    taken = claimed(proc) or _traced(its, where)
    found = [problem for problem in (_ourselves(proc.pid, where), taken) if problem is not None]
    rights = _rights(proc, its, where)
    if rights is not None:
        return [*found, rights]  # what follows needs them
    return found + [p for p in (*_threads(proc, where), _machine(proc, where)) if p is not None]


def _not_a_process(pid: int, its: Status, numbers: Stat, where: str) -> Problem | None:
    if its.tgid != pid:
        return Problem(where, f"it is a thread of process {its.tgid}", f"move {its.tgid}, with all its threads")
    if its.kthread or numbers.flags & PF_KTHREAD:
        return Problem(where, f"it is a kernel thread ({its.name}), and belongs to this machine")
    if its.state in "ZX":
        if its.threads > 1:
            return Problem(where, "its first thread has ended while others run on", "no process can be made like that")
        return Problem(where, f"it is a zombie: it has ended, and its parent {its.ppid} has not looked at it yet")
    return None


def _ourselves(pid: int, where: str) -> Problem | None:
    if pid == os.getpid():
        return Problem(where, "that is this program itself")
    ancestor = os.getppid()
    while ancestor > 0:
        if ancestor == pid:
            return Problem(
                where,
                "this program was started by it, and would stop together with it",
                "run it from another terminal",
            )
        try:
            ancestor = stat(Path(f"/proc/{ancestor}/stat").read_text(errors="surrogateescape")).ppid
        except (FileNotFoundError, ProcessLookupError):
            return None
    return None


def _traced(its: Status, where: str) -> Problem | None:
    if not its.tracer_pid:
        return None
    try:
        name = Path(f"/proc/{its.tracer_pid}/comm").read_text(errors="replace").strip()
    except OSError:
        name = "?"
    return Problem(
        where,
        f"it is traced already, by process {its.tracer_pid} ({name}); a process has one tracer",
        "let that one detach",
    )


def _rights(proc: Proc, its: Status, where: str) -> Problem | None:
    """The kernel itself is asked: to open /proc/PID/mem takes the very rights that to attach does (ptrace(2), "Ptrace
    access mode checking"). When it says no, those rules tell why."""
    ours = status(Path("/proc/self/status").read_text(errors="surrogateescape"))
    if _namespaces_differ(proc) and not ours.cap_eff & _CAP_SYS_PTRACE:
        return NoRights(where, "it is in another user namespace", "run as root")
    try:
        os.close(proc.open("mem", os.O_RDWR))
    except PermissionError:
        advice = "give CAP_SYS_PTRACE" if ours.uids[1] == 0 else "run as root, or as a user whom sudo makes root"
        return NoRights(where, _no_rights(its, ours), advice)
    except OSError as error:
        return Problem(where, f"its memory cannot be opened: {error.strerror}")
    return None


def _no_rights(its: Status, ours: Status) -> str:
    if set(its.uids[:3]) != {ours.uids[0]}:
        return f"it belongs to user {its.uids[0]}, we run as user {ours.uids[0]}"
    if set(its.gids[:3]) != {ours.gids[0]}:
        return f"it runs with group {its.gids[0]}, we with group {ours.gids[0]}"
    scope = _PTRACE_SCOPE.read_text().strip() if _PTRACE_SCOPE.exists() else "0"
    if scope != "0":
        return f"kernel.yama.ptrace_scope is {scope}, which forbids to trace what is not a child"
    if its.cap_prm & ~ours.cap_prm:
        return "it has capabilities that we lack"
    return "it has forbidden to be looked at (PR_SET_DUMPABLE, or it runs a program that we may not read)"


def _namespaces_differ(proc: Proc) -> bool:
    try:
        return proc.link("ns/user") != os.readlink("/proc/self/ns/user")
    except PermissionError:
        return False  # no rights at all: said below
    except OSError:
        return False


def _threads(proc: Proc, where: str) -> list[Problem]:
    """A thread traced on its own is as much in the way as the first one, and one under seccomp as well."""
    traced: list[Problem] = []
    confined: list[Problem] = []
    for tid in proc.tids():
        try:
            text = proc.text(f"task/{tid}/status")
        except (FileNotFoundError, ProcessLookupError):
            continue
        try:
            its = status(text)
        except ProcFormatError:
            continue  # it ended while it was read
        if tid != proc.pid and its.tracer_pid:
            traced.append(Problem(where, f"its thread {tid} is traced already, by process {its.tracer_pid}"))
        if its.seccomp:
            confined += _seccomp(where, tid)
    return traced[:1] + confined[:1]


def _seccomp(where: str, tid: int) -> list[Problem]:
    """What filters there are the kernel tells only who could have got around them, and only such a one may suspend
    them while the process is looked at (PTRACE_SECCOMP_GET_FILTER, PTRACE_O_SUSPEND_SECCOMP in ptrace(2))."""
    ours, what = status(Path("/proc/self/status").read_text()), f"its thread {tid} is under seccomp"
    if ours.seccomp:
        return [Problem(where, f"{what}, and so are we, who could not suspend it", "run it outside of that")]
    if not ours.cap_eff & _CAP_SYS_ADMIN:
        return [NoRights(where, f"{what}, which only CAP_SYS_ADMIN may look at and suspend", "run as root")]
    return []


def _machine(proc: Proc, where: str) -> Problem | None:
    try:
        fd = proc.open("exe")
    except FileNotFoundError:
        return Problem(where, "it has no executable, and so no address space of its own")
    try:
        head = os.pread(fd, 20, 0)
    finally:
        os.close(fd)
    if head[:4] == b"\x7fELF" and machine(head) not in (X86_64, IA32):
        return Problem(where, "it runs a foreign program; only those of x86-64 and of ia32 can be moved")
    return None

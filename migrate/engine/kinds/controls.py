"""What prctl(2), arch_prctl(2) and personality(2) set, and what stands beside them in /proc/PID.

Some belong to the process (its mm or signal struct), some to each thread, whatever libc makes of it. Not kept: the
audit login uid and Yama's PR_SET_PTRACER (cannot be read), syscall user dispatch (refused for now). Seccomp has a
file of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from migrate.engine.kernel import prctl
from migrate.engine.program import Program, Results
from migrate.errors import Problem

_INT = struct.Struct("<i")
DUMPABLE_ROOT = 2  # SUID_DUMP_ROOT
# PR_IO_FLUSHER of kernel/sys.c, as the flags of /proc/PID/stat show it: PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE
IO_FLUSHER = 0x00080000 | 0x00100000
PERSONALITY_ASK = 0xFFFFFFFF
AT_FDCWD, O_WRONLY = -100, 1
ENOENT, ENXIO, EBADF = 2, 6, 9
_SPECULATION = {
    prctl.PR_SPEC_STORE_BYPASS: "speculative store bypass",
    prctl.PR_SPEC_INDIRECT_BRANCH: "indirect branch speculation",
    prctl.PR_SPEC_L1D_FLUSH: "L1D flush",
}


@dataclass(frozen=True)
class ProcessControls:
    """Those of the whole process."""

    dumpable: int
    child_subreaper: bool
    thp_disable: int  # what PR_GET_THP_DISABLE returns; since 6.18 flags stand above bit 0
    mdwe: int  # PR_MDWE_*
    memory_merge: bool
    io_flusher: bool
    oom_score_adj: int
    coredump_filter: int
    autogroup: int  # nice value of the group of its session (sched(7), "The autogroup feature"), 0 where there is none

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results, int, Mapping[str, bytes]], ProcessControls]:
        """Five ops. The decoder also takes the flags of stat, and the contents of oom_score_adj, coredump_filter and
        autogroup.

        PR_GET_IO_FLUSHER is not asked: it wants CAP_SYS_RESOURCE even for looking, and the flags show it. They are
        those of the main thread, and are taken to be every thread's: it is set once, by the servers of storage, before
        they make threads, who inherit it.
        """
        subreaper = program.space(_INT.size)
        program.syscall("prctl", prctl.PR_GET_CHILD_SUBREAPER, subreaper, 0, 0, 0, label="child subreaper")
        dumpable = program.syscall("prctl", prctl.PR_GET_DUMPABLE, 0, 0, 0, 0, label="dumpable")
        thp = program.syscall("prctl", prctl.PR_GET_THP_DISABLE, 0, 0, 0, 0, label="THP disable")
        mdwe = program.syscall("prctl", prctl.PR_GET_MDWE, 0, 0, 0, 0, label="memory-deny-write-execute", ignore=True)
        merge = program.syscall("prctl", prctl.PR_GET_MEMORY_MERGE, 0, 0, 0, 0, label="memory merge", ignore=True)

        def decode(results: Results, flags: int, files: Mapping[str, bytes]) -> ProcessControls:
            return cls(
                dumpable=results.of(dumpable),
                child_subreaper=bool(_INT.unpack(results.bytes(subreaper))[0]),
                thp_disable=results.of(thp),
                mdwe=max(results.of(mdwe), 0),  # a kernel that knows no such thing has none set
                memory_merge=results.of(merge) > 0,
                io_flusher=flags & IO_FLUSHER == IO_FLUSHER,
                oom_score_adj=int(files["oom_score_adj"]),
                coredump_filter=int(files["coredump_filter"], 16),
                autogroup=int((files["autogroup"].split() or [b"0"])[-1]),  # "/autogroup-25 nice 0"
            )

        return decode

    def problems(self, where: str, oom_score_adj: int, can_raise: bool) -> list[Problem]:
        """``oom_score_adj``: the agent's at the destination; ``can_raise``: it has CAP_SYS_RESOURCE."""
        if can_raise:
            return []
        found = []
        if self.oom_score_adj < oom_score_adj:
            what = f"oom_score_adj is {self.oom_score_adj}, and the destination cannot go below {oom_score_adj}"
            advice = f"choom -n {oom_score_adj} -p PID, or a root with CAP_SYS_RESOURCE there"
            found.append(Problem(where, what, advice))
        for name, on in (("PR_SET_MEMORY_MERGE", self.memory_merge), ("PR_SET_IO_FLUSHER", self.io_flusher)):
            if on:
                found.append(Problem(where, f"{name} is on, which needs CAP_SYS_RESOURCE at the destination"))
        return found

    def restore_early(self, program: Program, oom_score_adj: int) -> None:
        """While root, and while /proc is within reach. ``oom_score_adj``: what the restoree has now."""
        program.syscall(
            "prctl", prctl.PR_SET_CHILD_SUBREAPER, int(self.child_subreaper), 0, 0, 0, label="child subreaper"
        )
        on, flags = self.thp_disable & 1, self.thp_disable & ~1
        program.syscall("prctl", prctl.PR_SET_THP_DISABLE, on, flags, 0, 0, label="THP disable")
        if self.memory_merge:
            program.syscall("prctl", prctl.PR_SET_MEMORY_MERGE, 1, 0, 0, 0, label="memory merge")
        if self.oom_score_adj != oom_score_adj:
            _write(program, "/proc/self/oom_score_adj", str(self.oom_score_adj))
        _write(program, "/proc/self/coredump_filter", f"{self.coredump_filter:#x}")
        if self.autogroup:
            # Of its session, so the same for all that are in that. A kernel without has nothing that could be set.
            _write(program, "/proc/self/autogroup", str(self.autogroup), ENOENT)

    def restore_late(self, program: Program) -> None:
        """After the last change of credentials, which resets dumpable, and after the last executable mapping.

        SUID_DUMP_ROOT cannot be asked for (prctl(2)): it becomes "no core dump", which gives away no more.
        """
        dumpable = 0 if self.dumpable == DUMPABLE_ROOT else self.dumpable
        program.syscall("prctl", prctl.PR_SET_DUMPABLE, dumpable, 0, 0, 0, label="dumpable")
        if self.mdwe:
            program.syscall("prctl", prctl.PR_SET_MDWE, self.mdwe, 0, 0, 0, label="memory-deny-write-execute")


def _write(program: Program, path: str, text: str, missing: int | None = None) -> None:
    """``missing``: the errno with which opening it may fail."""
    wrong = None if missing is None else EBADF  # then
    fd = program.syscall("openat", AT_FDCWD, program.string(path), O_WRONLY, 0, label=path, errno_ok=missing)
    expect = len(text) if missing is None else None
    program.syscall("write", fd, program.string(text), len(text), label=path, expect=expect, errno_ok=wrong)
    program.syscall("close", fd, label=path, errno_ok=wrong)


@dataclass(frozen=True)
class ThreadControls:
    """Those of one thread."""

    parent_death_signal: int
    tsc: int  # PR_TSC_ENABLE or PR_TSC_SIGSEGV
    cpuid: bool  # False: the instruction faults
    mce_kill: int  # PR_MCE_KILL_*
    speculation: tuple[int, int, int]  # by PR_SPEC_*; negative: unknown to the kernel
    personality: int

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results], ThreadControls]:
        """Eight ops."""
        words = program.space(8)  # two ints
        program.syscall("prctl", prctl.PR_GET_PDEATHSIG, words, 0, 0, 0, label="parent-death signal")
        program.syscall("prctl", prctl.PR_GET_TSC, words.at(4), 0, 0, 0, label="TSC mode")
        cpuid = program.syscall("arch_prctl", prctl.ARCH_GET_CPUID, 0, label="CPUID mode", ignore=True)
        mce = program.syscall("prctl", prctl.PR_MCE_KILL_GET, 0, 0, 0, 0, label="machine-check policy")
        first, second, third = (
            program.syscall("prctl", prctl.PR_GET_SPECULATION_CTRL, which, 0, 0, 0, label=name, ignore=True)
            for which, name in _SPECULATION.items()
        )
        personality = program.syscall("personality", PERSONALITY_ASK, label="personality")

        def decode(results: Results) -> ThreadControls:
            signal, tsc = struct.unpack("<ii", results.bytes(words))
            of = results.of
            speculation = (of(first), of(second), of(third))
            return cls(signal, tsc, of(cpuid) != 0, of(mce), speculation, of(personality))

        return decode

    def inherited_from(self, maker: ThreadControls) -> bool:
        """Whether a thread has all that `restore` restores from the one that made it. Only what everybody has is taken
        to be inherited."""
        born = self.tsc == prctl.PR_TSC_ENABLE and self.cpuid and self.mce_kill == prctl.PR_MCE_KILL_DEFAULT
        return born and self.personality == maker.personality and self.speculation == maker.speculation

    def restore(self, program: Program, io_flusher: bool) -> None:
        """Before the credentials."""
        program.syscall("personality", self.personality, label="personality")
        if io_flusher:
            program.syscall("prctl", prctl.PR_SET_IO_FLUSHER, 1, 0, 0, 0, label="I/O flusher")
        if self.mce_kill != prctl.PR_MCE_KILL_DEFAULT:
            label = "machine-check policy"
            program.syscall("prctl", prctl.PR_MCE_KILL, prctl.PR_MCE_KILL_SET, self.mce_kill, 0, 0, label=label)
        for which, state in enumerate(self.speculation):
            if _chosen(which, state):
                # ENXIO: the CPU or the boot options there leave no choice (prctl(2))
                control = state & ~prctl.PR_SPEC_PRCTL
                label = _SPECULATION[which]
                call = prctl.PR_SET_SPECULATION_CTRL
                program.syscall("prctl", call, which, control, 0, 0, label=label, errno_ok=ENXIO)
        if self.tsc != prctl.PR_TSC_ENABLE:
            program.syscall("prctl", prctl.PR_SET_TSC, self.tsc, 0, 0, 0, label="TSC mode")
        if not self.cpuid:
            program.syscall("arch_prctl", prctl.ARCH_SET_CPUID, 0, label="CPUID mode")

    def restore_late(self, program: Program) -> None:
        """After the credentials, a change of which clears it (commit_creds, kernel/cred.c). It will come when the new
        parent ends: that must not be somebody who leaves right after the commit."""
        if self.parent_death_signal:
            signal = self.parent_death_signal
            program.syscall("prctl", prctl.PR_SET_PDEATHSIG, signal, 0, 0, 0, label="parent-death signal")


def _chosen(which: int, state: int) -> bool:
    """Whether the thread is not in the state that it was born in. L1D flushing is off until asked for, so "enabled"
    is the choice there; the other two are on, and "disabled" is."""
    if state < 0 or not state & prctl.PR_SPEC_PRCTL:
        return False
    enabled = bool(state & prctl.PR_SPEC_ENABLE)
    return enabled if which == prctl.PR_SPEC_L1D_FLUSH else not enabled


def refusals(where: str, dispatch: bytes | None) -> list[Problem]:
    """What stands between a thread and its system calls. ``dispatch``: struct ptrace_sud_config of
    PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (Linux 6.4; None where there is no such request, and no way to know)."""
    if dispatch is not None and struct.unpack_from("<Q", dispatch)[0]:
        return [Problem(where, "uses syscall user dispatch, which cannot be moved yet")]
    return []

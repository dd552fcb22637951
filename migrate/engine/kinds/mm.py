"""mm_struct besides its VMAs: where code, data, heap, arguments and environment are, the auxiliary vector, the
executable, what is locked in future, and the protection keys in use."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import stat as parse_stat
from migrate.engine.kinds.needs import FILE, FileNeed
from migrate.engine.program import Program, Results
from migrate.errors import Problem

PR_SET_MM, PR_SET_MM_MAP = 35, 14  # prctl(2), PR_SET_MM_MAP since Linux 3.18
_MM_MAP = struct.Struct("<11QQII")  # struct prctl_mm_map: … auxv pointer, auxv_size, exe_fd (linux/prctl.h)
MCL_FUTURE, MCL_ONFAULT = 2, 4  # mlockall(2)
AT_FDCWD = -100
_KEYS = 15  # besides key 0, which is always there (pkeys(7))


@dataclass(frozen=True)
class MM:
    """Addresses as in /proc/PID/stat (proc_pid_stat(5)); ``brk`` is nowhere in /proc."""

    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    auxv: bytes
    exe: str
    lock_future: int = 0  # MCL_FUTURE, MCL_ONFAULT
    pkeys: tuple[int, ...] = ()  # allocated, besides 0

    @classmethod
    def collect(cls, program: Program, proc: Proc, keys: bool = False) -> Callable[[Results, str], MM]:
        """One op in the task, or with ``keys`` (the CPU has protection keys) 31. The decoder reads the rest from
        ``proc``, and takes the VmFlags of an anonymous area that was mapped for us in the task (by no more than
        mmap(2)), since whether future areas are locked shows in nothing else."""
        brk = program.syscall("brk", 0, label="end of the heap")
        free = _collect_keys(program) if keys else None

        def decode(results: Results, own_flags: str) -> MM:
            s = parse_stat(proc.text("stat"))
            codes = own_flags.split()
            lock = (MCL_FUTURE if "lo" in codes else 0) | (MCL_ONFAULT if "lf" in codes else 0)
            used: tuple[int, ...] = ()
            if free is not None:
                available = free(results)
                used = tuple(key for key in range(1, _KEYS + 1) if key not in available) if available else ()
            return cls(
                *(s.startcode, s.endcode, s.start_data, s.end_data, s.start_brk, results.of(brk), s.startstack),
                *(s.arg_start, s.arg_end, s.env_start, s.env_end),
                auxv=proc.read("auxv"),
                exe=proc.link("exe"),
                lock_future=lock,
                pkeys=used,
            )

        return decode

    def restore(self, program: Program, scratch_fd: int) -> None:
        """After the address space is finished: the executable that it replaces must not be mapped any more (EBUSY).
        ``scratch_fd`` is any free descriptor number. Taking the place of an executable needs CAP_CHECKPOINT_RESTORE
        or CAP_SYS_ADMIN; PR_SET_MM_MAP sets all or nothing, and needs none of what the single fields need."""
        label = f"executable {self.exe}"
        fd = program.syscall("openat", AT_FDCWD, program.string(self.exe), os.O_RDONLY | os.O_CLOEXEC, 0, label=label)
        program.syscall("dup3", fd, scratch_fd, os.O_CLOEXEC, label=label, expect=scratch_fd)
        program.syscall("close", fd, label=label)
        auxv = program.data(self.auxv)
        addresses = (
            *(self.start_code, self.end_code, self.start_data, self.end_data, self.start_brk, self.brk),
            *(self.start_stack, self.arg_start, self.arg_end, self.env_start, self.env_end),
        )
        content = _MM_MAP.pack(*addresses, 0, len(self.auxv), scratch_fd)
        fields = program.data(content, pointers={11 * 8: auxv})
        label = f"mm_struct and executable {self.exe}"
        program.syscall("prctl", PR_SET_MM, PR_SET_MM_MAP, fields, fields.size, 0, label=label)
        program.syscall("close", scratch_fd, label=label)
        if self.lock_future:
            program.syscall("mlockall", self.lock_future | MCL_FUTURE, label="lock what is mapped in future")

    def restore_keys(self, program: Program) -> None:
        """Before the address space is finished, which gives keys to areas: all of them, in order; then those that the
        task does not have are freed. What they allow (PKRU) is in the vector registers."""
        if not self.pkeys:
            return
        for key in range(1, _KEYS + 1):
            program.syscall("pkey_alloc", 0, 0, label=f"protection key {key}", expect=key)
        for key in range(1, _KEYS + 1):
            if key not in self.pkeys:
                program.syscall("pkey_free", key, label=f"protection key {key}")


def _collect_keys(program: Program) -> Callable[[Results], set[int]]:
    """Which keys are free: take them all and give them back. This changes PKRU of the thread that runs the program."""
    got = [program.syscall("pkey_alloc", 0, 0, label="protection keys", ignore=True) for _ in range(_KEYS)]
    for slot in got:
        program.syscall("pkey_free", slot, label="protection keys", ignore=True)  # EINVAL for what was not given
    return lambda results: {results.of(slot) for slot in got if results.of(slot) > 0}


def _same_mounts(proc: Proc) -> bool:
    return proc.stat("ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino


def look_at_exe(proc: Proc) -> tuple[FileNeed, list[Problem]]:
    """What the destination needs of the executable, and why it cannot be moved."""
    path, found = proc.link("exe"), proc.stat("exe")
    where = f"pid {proc.pid} exe"
    need = FileNeed(where, path, FILE, found.st_size, found.st_mtime_ns, content=True)
    try:
        there = os.stat(path) if _same_mounts(proc) else os.stat(f"/proc/{proc.pid}/root{path}")
    except OSError:
        there = None
    if there is None or (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
        return need, [Problem(where, f"{path}: the executable has been deleted or replaced", "restart the process")]
    if not stat.S_ISREG(found.st_mode):
        return need, [Problem(where, f"{path} is not a regular file")]
    return need, []

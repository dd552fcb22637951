"""Our numbers and layouts against the system's headers: every constant of ours that the headers know by the same name,
every structure that we lay out by hand. The headers may be older than the kernels we meet: what they do not know is
not compared."""

from __future__ import annotations

import importlib
import pkgutil
import struct
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import migrate.engine.kernel
import migrate.engine.kinds
import migrate.engine.tracee
from migrate.engine.kernel import pagemap, userfaultfd
from migrate.engine.kernel.syscalls import NUMBERS

# The kernel's own headers and none of libc's, whose struct sigaction and sigset_t are others.
HEADERS = [
    *("asm/unistd_64.h", "asm/prctl.h", "asm/signal.h", "asm/siginfo.h", "asm/resource.h", "asm/mman.h", "asm/stat.h"),
    *("asm/ptrace.h", "linux/auxvec.h", "linux/capability.h", "linux/elf.h", "linux/eventpoll.h", "linux/fadvise.h"),
    *("linux/falloc.h", "linux/fcntl.h", "linux/fs.h", "linux/inotify.h", "linux/ioprio.h", "linux/kcmp.h"),
    *("linux/magic.h", "linux/memfd.h", "linux/mempolicy.h", "linux/pidfd.h", "linux/prctl.h", "linux/ptrace.h"),
    *("linux/rseq.h", "linux/sched.h", "linux/sched/types.h", "linux/seccomp.h", "linux/securebits.h", "linux/stat.h"),
    *("linux/time.h", "linux/timerfd.h", "linux/uio.h", "linux/userfaultfd.h", "linux/wait.h", "linux/futex.h"),
    *("linux/personality.h", "linux/limits.h"),
]
# Structures newer than Debian 12's headers, as linux/fs.h has them since 6.7.
NEWER = """
#ifndef PAGEMAP_SCAN
struct page_region { __u64 start, end, categories; };
struct pm_scan_arg { __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
    category_anyof_mask, return_mask; };
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
#endif
"""


def modules() -> list[ModuleType]:
    found = []
    for package in (migrate.engine.kernel, migrate.engine.kinds, migrate.engine.tracee):
        names = [info.name for info in pkgutil.iter_modules(package.__path__)]
        found += [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return found


def constants() -> dict[str, set[int]]:
    """Name, without the underscore of a private one -> its values. (Two modules may have it, and must agree.)"""
    found: dict[str, set[int]] = {}
    for module in modules():
        for name, value in vars(module).items():
            if name.isupper() and type(value) is int:
                found.setdefault(name.removeprefix("_"), set()).add(value)
    return found


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says of all of it: ``name`` for constants, ``__NR_x``, ``sizeof …`` and ``offsetof …``."""
    where = tmp_path_factory.mktemp("abi")
    lines = [f"#include <{header}>" for header in HEADERS]
    lines += [NEWER, "int printf(const char *, ...);", "int main(void) {"]
    for name in [*constants(), *(f"__NR_{name}" for name in NUMBERS)]:
        lines += [f"#ifdef {name}", f'printf("{name}\\t%lld\\n", (long long)({name}));', "#endif"]
    for key, expression in LAYOUTS.items():
        lines += [f'printf("{key}\\t%lld\\n", (long long)({expression}));']
    lines += ["return 0; }"]
    (where / "abi.c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-w", "-o", where / "abi", where / "abi.c"], check=True)
    out = subprocess.run([where / "abi"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split("\t") for line in out.splitlines())}


def offset(kind: str, member: str) -> str:
    return f"__builtin_offsetof({kind}, {member})"


LAYOUTS = {
    "uffdio_api": "sizeof(struct uffdio_api)",
    "uffdio_register": "sizeof(struct uffdio_register)",
    "uffdio_range": "sizeof(struct uffdio_range)",
    "pm_scan_arg": "sizeof(struct pm_scan_arg)",
    "page_region": "sizeof(struct page_region)",
    "sigaction": "sizeof(struct sigaction)",
    "sa_flags": offset("struct sigaction", "sa_flags"),
    "sa_restorer": offset("struct sigaction", "sa_restorer"),
    "sa_mask": offset("struct sigaction", "sa_mask"),
    "stack_t": "sizeof(stack_t)",
    "ss_size": offset("stack_t", "ss_size"),
    "siginfo": "sizeof(siginfo_t)",
    "sigevent": "sizeof(struct sigevent)",
    "sigev_tid": offset("struct sigevent", "_sigev_un._tid"),
    "itimerspec": "sizeof(struct itimerspec)",
    "prctl_mm_map": "sizeof(struct prctl_mm_map)",
    "auxv": offset("struct prctl_mm_map", "auxv"),
    "exe_fd": offset("struct prctl_mm_map", "exe_fd"),
    "clone_args": "sizeof(struct clone_args)",
    "rseq_cs": "sizeof(struct rseq_cs)",
    "sched_runtime": offset("struct sched_attr", "sched_runtime"),
    "sched_util_min": offset("struct sched_attr", "sched_util_min"),
    "iovec": "sizeof(struct iovec)",
    "flock": "sizeof(struct flock)",
    "l_pid": offset("struct flock", "l_pid"),
    "user_regs": "sizeof(struct pt_regs)",
}


def private(module: str, name: str) -> struct.Struct:
    found = getattr(importlib.import_module(f"migrate.engine.{module}"), name)
    assert isinstance(found, struct.Struct)
    return found


def test_every_constant_that_the_headers_know(ask: dict[str, int]) -> None:
    ours = constants()
    wrong = {}
    for name, values in ours.items():
        if name in ask:
            theirs = {ask[name], ask[name] % (1 << 64)}  # RLIM_INFINITY is ~0UL
            if name.startswith("CAP_"):
                theirs.add(1 << ask[name])  # ours may be the bit in a mask
            if not values <= theirs:
                wrong[name] = values, ask[name]
    assert wrong == {}
    assert sum(name in ask for name in ours) > 100  # or the headers were not found


def test_every_system_call(ask: dict[str, int]) -> None:
    theirs = {name: ask.get(f"__NR_{name}", ours) for name, ours in NUMBERS.items()}
    assert theirs == NUMBERS
    unknown = {name for name in NUMBERS if f"__NR_{name}" not in ask}
    assert all(NUMBERS[name] > 450 for name in unknown), unknown  # 6.1 ends with set_mempolicy_home_node, 450


def test_userfaultfd_and_pagemap(ask: dict[str, int]) -> None:
    assert userfaultfd.API.size == ask["uffdio_api"]
    assert userfaultfd.REGISTER.size == ask["uffdio_register"]
    assert userfaultfd.RANGE.size == ask["uffdio_range"]
    assert pagemap.SCAN_ARG.size == ask["pm_scan_arg"]
    assert ask["page_region"] == 24
    for name in ("UFFDIO_API", "UFFDIO_REGISTER", "UFFDIO_UNREGISTER"):
        assert getattr(userfaultfd, name) == ask[name] & 0xFFFFFFFF
    assert ask["PAGEMAP_SCAN"] == pagemap.PAGEMAP_SCAN


def test_structures_of_the_task(ask: dict[str, int]) -> None:
    action = private("kinds.signals", "_ACTION")
    assert (action.size, ask["sa_flags"], ask["sa_restorer"], ask["sa_mask"]) == (ask["sigaction"], 8, 16, 24)
    stack = private("kinds.signals", "_STACK")
    assert (stack.size, ask["ss_size"]) == (ask["stack_t"], 16)
    assert ask["siginfo"] == 128
    event = private("kinds.timers", "_EVENT")
    assert (event.size, ask["sigev_tid"]) == (ask["sigevent"], 16)
    assert private("kinds.timers", "_FOUR").size == ask["itimerspec"]
    layout = private("kinds.mm", "_MM_MAP")
    assert (layout.size, ask["auxv"], ask["exe_fd"]) == (ask["prctl_mm_map"], 11 * 8, 12 * 8 + 4)
    assert private("kinds.identity", "_CRITICAL_SECTION").size == ask["rseq_cs"]
    attr = private("kinds.scheduling", "_ATTR")
    assert (attr.size, ask["sched_runtime"]) == (ask["sched_util_min"], 24)
    lock = private("kinds.locks", "_FLOCK")
    assert (lock.size, ask["l_pid"]) == (ask["flock"], 24)
    assert ask["iovec"] == 16
    assert ask["clone_args"] == 88


def test_registers(ask: dict[str, int]) -> None:
    # ptrace's struct user_regs_struct: pt_regs, then fs_base, gs_base and four segments (sys/user.h)
    assert private("tracee.registers", "_LAYOUT").size == ask["user_regs"] + 6 * 8


def test_the_headers_are_where_debian_puts_them() -> None:
    assert Path("/usr/include/linux/userfaultfd.h").exists()

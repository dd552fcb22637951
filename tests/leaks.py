"""What a test must not leave behind: processes, descriptors, threads, mounts, namespaces, temporary files.

Every process that a test starts stays below this one, even when its parent ends first: `become_subreaper` has orphans
handed to us, and those of a test host go to the host's pid 1, which is below us as well. So "what is below us" is all
there is to look at, and other people's work on the machine is never mistaken for a leak.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.tasks import PATIENCE, children, status_field

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
TEMPORARY = Path("/tmp")


def become_subreaper() -> None:
    """Have the orphans among our descendants become our children, not pid 1's (PR_SET_CHILD_SUBREAPER(2const))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, in whatever namespaces, zombies too."""
    found: list[int] = []
    waiting = children(pid)
    while waiting:
        child = waiting.pop()
        found.append(child)
        waiting += children(child)
    return found


def _describe(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        state = " ".join(status_field(pid, "State"))
        inner = "/".join(status_field(pid, "NSpid"))
    except (FileNotFoundError, ProcessLookupError):
        return "gone meanwhile"
    return f"{inner} {state}: {words or ' '.join(status_field(pid, 'Name'))}"


def _start_time(pid: int) -> str:
    try:
        # field 22; the name in field 2 may itself hold blanks and brackets (proc_pid_stat(5))
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _processes() -> dict[str, str]:
    return {f"{pid}@{_start_time(pid)}": f"{pid}" for pid in descendants(os.getpid())}


def _links(directory: str) -> dict[str, str]:
    found = {}
    for name in os.listdir(directory):
        try:
            found[name] = os.readlink(f"{directory}/{name}")
        except OSError:
            continue  # the descriptor that listed the directory
    return found


def _mounts(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {f"{pid}:{line.split()[0]}": line for line in lines}


def _temporary() -> dict[str, str]:
    # each test run has a directory of its own, made and removed by tests/hosts.py
    names = (path.name for path in TEMPORARY.glob("migrate*") if not path.name.startswith("migrate-test-"))
    return {name: str(TEMPORARY / name) for name in names}


@dataclass
class Snapshot:
    """What there is now, by kind: identity → what to say about it."""

    processes: Mapping[str, str] = field(default_factory=_processes)
    descriptors: Mapping[str, str] = field(default_factory=lambda: _links("/proc/self/fd"))
    threads: Mapping[str, str] = field(default_factory=lambda: {t: t for t in os.listdir("/proc/self/task")})
    mounts: Mapping[str, str] = field(default_factory=lambda: _mounts(os.getpid()))
    host_mounts: Mapping[str, str] = field(default_factory=dict)
    namespaces: Mapping[str, str] = field(default_factory=lambda: _namespaces())
    temporary: Mapping[str, str] = field(default_factory=_temporary)


def _namespaces() -> dict[str, str]:
    """Named network namespaces (ip-netns(8)); one without a name ends with its processes."""
    directory = Path("/run/netns")
    return {name: name for name in os.listdir(directory)} if directory.is_dir() else {}


def take(hosts: Callable[[], list[int]] = list) -> Snapshot:
    """The state of things now; ``hosts`` gives our numbers of the pid 1 of every test host that is up."""
    mounts: dict[str, str] = {}
    for init in hosts():
        mounts |= _mounts(init)
    return Snapshot(host_mounts=mounts)


def _new(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [f"{what}: {after[key]}" for key in sorted(after) if before.get(key) != after[key]]


def compare(before: Snapshot, after: Snapshot) -> list[str]:
    """What is there after and was not before, one line each."""
    found = _new("mount", before.mounts, after.mounts) + _new("mount in a host", before.host_mounts, after.host_mounts)
    found += _new("network namespace", before.namespaces, after.namespaces)
    found += _new("temporary file", before.temporary, after.temporary)
    found += _new("thread", before.threads, after.threads)
    found += _new("descriptor", before.descriptors, after.descriptors)
    for key in sorted(set(after.processes) - set(before.processes)):
        found.append(f"process {_describe(int(after.processes[key]))}")
    return found


def settle(before: Snapshot, hosts: Callable[[], list[int]] = list, seconds: float = 3.0) -> list[str]:
    """What stays behind after ``seconds`` in which ends may still be coming; nothing as soon as nothing does."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        left = compare(before, take(hosts))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.02)


def kill_new(before: Snapshot, seconds: float = 3.0) -> None:
    """Kill the processes that were not there before, so that one test's leak is not the next one's too. A zombie of a
    host that is left to us would keep the host's pid 1 from ending, so they are reaped until none is left."""
    end = time.monotonic() + seconds
    while (new := _processes().keys() - before.processes.keys()) and time.monotonic() < end:
        for key in new:
            try:
                os.kill(int(key.partition("@")[0]), 9)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        time.sleep(0.01)

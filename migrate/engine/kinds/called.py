"""What to call an open file that is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from migrate.engine.kinds.mqueue import PosixQueue
from migrate.engine.kinds.opened import OpenFile
from migrate.engine.kinds.pipe import is_pipe
from migrate.engine.kinds.terminal_reader import is_terminal

_NAMES = {
    "[io_uring]": "io_uring instance",
    "[perf_event]": "perf event",
    "[userfaultfd]": "userfaultfd",
    "[fanotify]": "fanotify group",
    "bpf-map": "BPF map",
    "bpf-prog": "BPF program",
    "bpf_link": "BPF link",
    "seccomp notify": "seccomp notification descriptor",
    "[landlock-ruleset]": "Landlock rule set",
}


def called(file: OpenFile, known: Collection[str]) -> str:
    """``known``: kinds behind "anon_inode:" that can be moved."""
    kind = file.link.removeprefix("anon_inode:")
    if kind != file.link:
        return _NAMES.get(kind, kind.strip("[]") if kind in known else f"descriptor of an unknown kind ({kind})")
    if is_terminal(file):
        return f"terminal {file.link}"
    if file.format == stat.S_IFBLK:
        return f"block device {file.link}"
    if file.link.startswith(("net:", "mnt:", "pid:", "user:", "uts:", "ipc:", "time:", "cgroup:")):
        return f"namespace {file.link}"
    if is_pipe(file):
        return "pipe"
    if PosixQueue.is_one(file):
        return f"POSIX message queue {os.path.basename(file.link)}"
    if file.format == stat.S_IFSOCK:
        return "unix socket"
    return f"file {file.link}" if file.format == stat.S_IFREG else f"descriptor of an unknown kind ({file.link})"

"""/proc/PID/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass

from migrate.engine.kernel.procformat import ProcFormatError

_OCTAL = re.compile(r"\\([0-7]{3})")
# Where another client's writes are seen only after a flush, and a page written here may sit in our cache alone.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs", "lustre", "gfs2", "ocfs2", "orangefs"}
)
# Made up by the kernel: sizes and times of their files say nothing.
_PSEUDO = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "nsfs"}
)


@dataclass(frozen=True)
class Mount:
    """One mount, as the process sees it."""

    mnt_id: int
    major: int
    minor: int
    point: str
    fstype: str

    @property
    def network(self) -> bool:
        return self.fstype in _NETWORK or self.fstype.startswith("fuse.")

    @property
    def pseudo(self) -> bool:
        return self.fstype in _PSEUDO


def mountinfo(text: str) -> list[Mount]:
    """The mounts that can be reached from the root of the process."""
    found = []
    for line in text.splitlines():
        head, dash, tail = line.partition(" - ")
        words = head.split(" ")
        if not dash or len(words) < 6:
            raise ProcFormatError("mountinfo", f"not a mount: {line!r}")
        major, minor = words[2].split(":")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), words[4])
        found.append(Mount(int(words[0]), int(major), int(minor), point, tail.split(" ")[0]))
    return found

"""What a host can run out of: a disk, memory, processes, descriptors. Each is taken away and given back."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import Host

_MOUNTS = Path("/proc/self/mountinfo")
_NO_LIMIT = {"memory.limit_in_bytes": "-1"}  # cgroup v1; everywhere else it is "max"
_PATIENCE = 5.0  # seconds for processes of a control group to be gone


class Disk:
    """A small filesystem that one host has under a path."""

    def __init__(self, host: Host, path: Path, size: str = "2m") -> None:
        self._host, self._path = host, path
        host.run(["mkdir", "-p", str(path)])
        host.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "chaos", str(path)])

    @property
    def path(self) -> Path:
        """As it is to be opened from here."""
        return Path(f"/proc/{self._host.init}/root{self._path}")

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self) -> None:
        """Not a page is left; what is half full stays so, and can be written to up to its end."""
        file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            size = os.fstat(file).st_size
            while True:
                free = os.fstatvfs(file)
                piece = max(1, free.f_bavail) * free.f_bsize
                try:
                    os.posix_fallocate(file, size, piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    if piece == free.f_bsize:
                        return
                    continue  # somebody else took some of it
                size += piece
        finally:
            os.close(file)

    def drain(self) -> None:
        """As it was."""
        self._ballast.unlink(missing_ok=True)

    def files(self) -> set[str]:
        """What is on it."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir()}


@dataclass(frozen=True)
class Limit:
    """A control group with the sshd of a host and all that comes of it (cgroups(7)), and what of it is limited."""

    group: Path
    limit: str
    usage: str
    kills: str  # the file that counts what was killed for it

    def put_in(self, pid: int) -> None:
        """The process and its future children."""
        (self.group / "cgroup.procs").write_text(str(pid))

    def take(self, room: int) -> None:
        """Leave it so much more than what it uses."""
        for _ in range(20):
            try:
                used = int((self.group / self.usage).read_text())
                (self.group / self.limit).write_text(str(used + room))
                return
            except OSError as error:
                if error.errno != errno.EBUSY:  # cgroup v1: it uses more by now
                    raise
        raise AssertionError(f"{self.group}: its limit cannot be set")

    def give_back(self) -> None:
        """Without a limit again."""
        (self.group / self.limit).write_text(_NO_LIMIT.get(self.limit, "max"))

    @property
    def killed(self) -> int:
        """How many processes were killed for it."""
        for line in (self.group / self.kills).read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0


@contextmanager
def limits(name: str) -> Iterator[dict[str, Limit]]:
    """Of ``memory`` and ``pids``, those that can be had here; they are removed at the end, when nobody is in them."""
    made: dict[str, Limit] = {}
    try:
        for controller in ("memory", "pids"):
            if limit := _made(controller, name):
                made[controller] = limit
        yield made
    finally:
        for group in {limit.group for limit in made.values()}:
            _remove(group)


def _made(controller: str, name: str) -> Limit | None:
    for line in _MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        (kind, _, options), root = after.split(), Path(before.split()[4])
        if kind == "cgroup" and controller in options.split(","):
            files = {"memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
                     "pids": ("pids.max", "pids.current", "pids.events")}  # fmt: skip
            root = root / _own(controller)
        elif kind == "cgroup2" and controller in (root / "cgroup.controllers").read_text().split():
            files = {"memory": ("memory.max", "memory.current", "memory.events"),
                     "pids": ("pids.max", "pids.current", "pids.events")}  # fmt: skip
            (root / "cgroup.subtree_control").write_text(f"+{controller}")
        else:
            continue
        group = root / name
        group.mkdir(exist_ok=True)
        return Limit(group, *files[controller])
    return None


def _own(controller: str) -> str:
    """Our own group, relative to the root of a hierarchy of cgroup v1."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""


def _remove(group: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.02)


class Descriptors:
    """A process is left with so many descriptors more than it has."""

    def __init__(self, pid: int, room: int) -> None:
        self._pid = pid
        used = max(map(int, os.listdir(f"/proc/{pid}/fd")), default=0) + 1
        self._before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + room, self._before[1]))

    def give_back(self) -> None:
        """As it was; nothing happens when it is gone."""
        try:
            resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._before)
        except ProcessLookupError:
            pass  # so is its limit

"""Who else has what the process has: an object shared with a process that stays behind cannot move with one of them."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from migrate.engine.kernel.fdcalls import same_file
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.opened import Key, OpenFile
from migrate.engine.kinds.terminal import MASTER
from migrate.engine.kinds.vma import OWN, VMA
from migrate.errors import Problem


def holders(files: Sequence[OpenFile], family: Collection[int]) -> dict[int, list[int]]:
    """By position in ``files``, the processes outside ``family`` that have it too: the same inode for what is one
    object whoever opens it (pipes, files), the same description for the rest. Looks through /proc/*/fd of every
    process that we may look at: milliseconds, so not for a frozen window."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for position, file in enumerate(files):
        wanted[file.link].append(position)
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if wanted else ():
        if not name.isdecimal() or int(name) in family or int(name) == os.getpid():
            continue
        for link, number in _descriptors(name):
            for position in wanted.get(link, ()):
                if int(name) not in found.get(position, ()) and _same(files[position], int(name), number):
                    found.setdefault(position, []).append(int(name))
    return found


def who_has(link: str, family: Collection[int]) -> list[int]:
    """The processes outside ``family`` with a descriptor that /proc shows so."""
    pids = (name for name in os.listdir("/proc") if name.isdecimal() and int(name) not in family)
    return [int(pid) for pid in pids if any(shown == link for shown, _ in _descriptors(pid))]


def shared_memory(vmas: Sequence[VMA], proc: Proc, family: Collection[int] = ()) -> list[Problem]:
    """Memory of their own that another process, which is not of its ``family``, has mapped too: what one writes, the
    other would no longer see. Looks through /proc/*/maps of every process that we may look at."""
    wanted: dict[bytes, VMA] = {}
    for vma in vmas:
        backing = vma.backing
        if vma.shared and backing is not None and backing.kind in OWN:
            device = f"{os.major(backing.dev):02x}:{os.minor(backing.dev):02x}"
            wanted.setdefault(f" {device} {backing.ino} ".encode(), vma)
    found: dict[bytes, Problem] = {}
    for name in os.listdir("/proc") if wanted else ():
        if not name.isdecimal() or int(name) == proc.pid or int(name) in family:
            continue
        try:
            with open(f"/proc/{name}/maps", "rb") as file:
                maps = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for key, vma in wanted.items():
            if key in maps and key not in found:
                where = f"pid {proc.pid} {vma.start:x}-{vma.end:x}"
                found[key] = Problem(where, f"shared memory that process {name} has mapped too", "end that one first")
    return list(found.values())


def users(files: Mapping[str, Key]) -> set[Key]:
    """Which of these files, by path, any process has open or mapped. Looks through all of /proc that we may look at."""
    lines = {f" {os.major(dev):02x}:{os.minor(dev):02x} {ino} ".encode(): (dev, ino) for dev, ino in files.values()}
    names = {os.path.basename(path) for path in files}  # as it is called wherever it is mounted
    found: set[Key] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            with open(f"/proc/{pid}/maps", "rb") as file:
                maps = file.read()
            found |= {key for line, key in lines.items() if line in maps}
        for link, number in _descriptors(pid):
            if os.path.basename(link) in names:
                with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                    there = os.stat(f"/proc/{pid}/fd/{number}")
                    found |= {(there.st_dev, there.st_ino)} & set(files.values())
    return found


def _descriptors(pid: str) -> list[tuple[str, int]]:
    """(link, number) of every descriptor of another process; none when it is gone or not ours to look at."""
    found = []
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    found.append((os.readlink(entry.path), int(entry.name)))
                except FileNotFoundError:
                    continue
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return found


def _same(file: OpenFile, pid: int, number: int) -> bool:
    try:
        if (file.link.startswith("/") and file.stat.st_rdev != MASTER) or file.link.startswith("pipe:"):
            there = os.stat(f"/proc/{pid}/fd/{number}")
            return (there.st_dev, there.st_ino) == file.key
        return same_file(file.dump.pid, file.numbers[0], pid, number)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    except OSError as error:
        if error.errno == errno.EBADF:  # closed meanwhile
            return False
        raise

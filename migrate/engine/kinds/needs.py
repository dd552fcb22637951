"""What a process needs to find in the destination's file system, and whether it is there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from migrate.errors import Problem

FILE, DIRECTORY, DEVICE, FIFO, ANY = "file", "directory", "device", "fifo", "any"
FREE_NAME, NEW_NAME, TERMINAL = "free name", "new name", "terminal"
_FORMATS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, DEVICE: stat.S_IFCHR, FIFO: stat.S_IFIFO}
_COPY = "copy it there with its times (rsync -t, cp -p), or share the file system"
_FREE_IT = "unlink it there (shm_unlink(3)) if nobody needs it any more"
_THERE = "on the destination"

Stat = Mapping[str, int]  # mode, size, mtime_ns, ino, dev, rdev, uid, gid; or errno


@dataclass(frozen=True)
class FileNeed:
    """A path that must lead to the same thing on the destination.

    ``kind``: FILE (size and mtime count), DIRECTORY, DEVICE (rdev counts), FIFO, ANY (must be there), or FREE_NAME
    (its directory must be there; whether the name is taken decides how a deleted file is made again), NEW_NAME (the
    same, and nothing else may have it: what goes by it is somebody's), or TERMINAL (its number is wanted; whether it is
    taken, and which of those below are, decides how it is made).
    ``content``: what is in the file must be the same too (it is mapped): compare digests.
    ``writable``: the process may write to it, so it may change while it is looked at.
    """

    where: str  # "pid 812 fd 5"
    path: str
    kind: str
    size: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    ino: int = 0  # counts for a directory read half-way: its offset means nothing elsewhere
    content: bool = False
    writable: bool = False


def paths(needs: Iterable[FileNeed]) -> list[str]:
    """What to ask the destination's stat for (following no symbolic link at the end)."""
    found: dict[str, None] = {}
    for need in needs:
        found[os.path.dirname(need.path) if need.kind in (FREE_NAME, NEW_NAME) else need.path] = None
        found.update(dict.fromkeys(_wanted(need)))
    return list(found)


def _wanted(need: FileNeed) -> list[str]:
    """All paths that tell something about it."""
    if need.kind != TERMINAL:
        return [need.path]
    directory, number = os.path.split(need.path)
    return [f"{directory}/{other}" for other in range(int(number) + 1)]


def taken(needs: Iterable[FileNeed], there: Mapping[str, Stat]) -> frozenset[str]:
    """Names of deleted files that something else has on the destination, and of terminals."""
    wanted = (path for need in needs if need.kind in (FREE_NAME, TERMINAL) for path in _wanted(need))
    return frozenset(path for path in wanted if "errno" not in there[path])


def compare(
    needs: Iterable[FileNeed],
    there: Mapping[str, Stat],
    now: Mapping[str, Stat] | None = None,
    sides: tuple[str, str] = (_THERE, "here"),
    one_machine: bool = False,
) -> list[Problem]:
    """Every need that the destination does not meet. ``sides``: what it and the source are called; ``one_machine``:
    they are containers of one, where a file is the same if device and inode are.

    A file that is being written changes between our look and the destination's, and on a shared file system that is
    no fault. ``now``: the source's stat, taken after the destination's; the destination may show any state between
    the two. What the process itself wrote before it was stopped is checked by the restore program, at no round trip.
    """
    problems: dict[tuple[str, str], Problem] = {}
    for need in needs:
        here = (now or {}).get(need.path)
        if one_machine and need.kind == NEW_NAME and here is not None and _is_one_file(here, there[need.path]):
            continue
        what = _wrong(need, there, here, *sides)
        if what is not None:
            advice = _FREE_IT if need.kind == NEW_NAME else "" if need.kind == DEVICE or sides[0] != _THERE else _COPY
            problems.setdefault((need.path, what), Problem(need.where, what, advice))
    return list(problems.values())


def _wrong(need: FileNeed, there: Mapping[str, Stat], now: Stat | None, at: str, before: str) -> str | None:
    if need.kind == FREE_NAME:
        directory = os.path.dirname(need.path)
        reply = there[directory]
        if "errno" in reply or not stat.S_ISDIR(reply["mode"]):
            return f"{directory}, where its deleted file {os.path.basename(need.path)} was, is not a directory {at}"
        return None
    if need.kind == TERMINAL:
        return None
    reply = there[need.path]
    if need.kind == NEW_NAME:
        if "errno" not in reply:
            return f"{need.path} is there {at} already, and would have to be made anew"
        parent = there[os.path.dirname(need.path)]
        return None if stat.S_ISDIR(parent.get("mode", 0)) else f"{os.path.dirname(need.path)} is not a directory {at}"
    if "errno" in reply:
        number = reply["errno"]
        missing = f"is not {at}" if number == errno.ENOENT else f"{at}: {os.strerror(number)}"
        return f"{need.path} {missing}"
    if need.kind in _FORMATS and stat.S_IFMT(reply["mode"]) != _FORMATS[need.kind]:
        return f"{need.path} is not a {need.kind} {at}"
    if need.kind == DEVICE and reply["rdev"] != need.rdev:
        return f"{need.path} is another device {at}"
    if need.kind == DIRECTORY and need.ino and reply["ino"] != need.ino:
        return f"{need.path} is read half-way, and is another directory {at}"
    if need.kind != FILE or need.mtime_ns == 0:
        return None
    last = (now["size"], now["mtime_ns"]) if now is not None and "errno" not in now else (need.size, need.mtime_ns)
    sizes, times = sorted((need.size, last[0])), sorted((need.mtime_ns, last[1]))
    if not sizes[0] <= reply["size"] <= sizes[1]:
        return f"{need.path} has {reply['size']} bytes {at} and {last[0]} {before}"
    if not times[0] <= reply["mtime_ns"] <= times[1]:
        return f"{need.path} was changed at another time {at} ({_ago(reply['mtime_ns'] - last[1])})"
    return None


def _is_one_file(one: Stat, other: Stat) -> bool:
    return all(name in one and name in other and one[name] == other[name] for name in ("dev", "ino"))


def _ago(difference_ns: int) -> str:
    seconds = abs(difference_ns) / 1e9
    return f"{seconds:.6g} s {'later' if difference_ns > 0 else 'earlier'}"

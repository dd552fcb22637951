"""What the destination agent tells about its host: nothing here changes anything.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import pwd
import resource
import socket
import stat as stat_module
import sys
import termios
import time
from typing import Any

VERSION = 1  # of the verbs
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441  # ioctl_tty(2)


def hello() -> dict[str, Any]:
    """Who and where the agent is. ``monotonic_ns`` and ``boottime_ns`` are read last, so that they are fresh."""
    uname = os.uname()
    return {
        "agent": VERSION,
        "python": ".".join(map(str, sys.version_info[:3])),
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "groups": os.getgroups(),
        "pid": os.getpid(),
        "machine": uname.machine,
        "release": uname.release,
        "version": uname.version,
        "system": uname.sysname,
        "node": socket.gethostname(),
        "page_size": resource.getpagesize(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "caps_effective": _status_hex("CapEff"),
        "caps_bounding": _status_hex("CapBnd"),
        "boot_id": _text("/proc/sys/kernel/random/boot_id"),
        "monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    }


def _text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _status_hex(field: str) -> int:
    for line in _text("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value, 16)
    raise OSError(f"/proc/self/status has no {field}")


def read(paths: list[str], limit: int = 16 << 20, total: int = 48 << 20) -> tuple[list[int], bytes]:
    """The contents of files (of /proc and /sys, mostly), one after the other, and the length of each or its -errno.

    Not more than ``limit`` bytes of each, and ``total`` of all of them; those that are behind that are EFBIG.
    """
    lengths, contents = [], []
    for path in paths:
        try:
            if total < limit:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            content = _read(path, limit)
            total -= len(content)
        except OSError as error:
            lengths.append(-(error.errno or 5))
        else:
            lengths.append(len(content))
            contents.append(content)
    return lengths, b"".join(contents)


def _read(path: str, limit: int) -> bytes:
    # O_NONBLOCK: a FIFO where a file was expected must not hang us.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        pieces = []
        while limit > 0:
            piece = os.read(fd, min(limit, 1 << 16))
            if not piece:
                break
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def stat(paths: list[str], nofollow: bool = False) -> list[dict[str, Any]]:
    """stat(2) of each, or {"errno": n}. With ``nofollow`` of a symbolic link itself, with its ``target``."""
    answers: list[dict[str, Any]] = []
    for path in paths:
        try:
            found = os.stat(path, follow_symlinks=not nofollow)
            answer: dict[str, Any] = {
                "mode": found.st_mode,
                "size": found.st_size,
                "mtime_ns": found.st_mtime_ns,
                "ino": found.st_ino,
                "dev": found.st_dev,
                "rdev": found.st_rdev,
                "uid": found.st_uid,
                "gid": found.st_gid,
                "nlink": found.st_nlink,
            }
            if stat_module.S_ISLNK(found.st_mode):
                answer["target"] = os.readlink(path)
        except (OSError, ValueError) as error:
            answer = {"errno": getattr(error, "errno", None) or 22}
        answers.append(answer)
    return answers


def digest(paths: list[str], lengths: list[int] | None = None) -> list[dict[str, Any]]:
    """{"digest": BLAKE2b of 128 bits} of each file, of its first ``lengths`` bytes where given; or {"errno": n}."""
    answers: list[dict[str, Any]] = []
    for index, path in enumerate(paths):
        try:
            answers.append({"digest": _digest(path, lengths[index] if lengths else None)})
        except OSError as error:
            answers.append({"errno": error.errno or 5})
    return answers


def _digest(path: str, length: int | None) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat_module.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "not a regular file")
        state = hashlib.blake2b(digest_size=16)
        left = length
        while left is None or left > 0:
            piece = os.read(fd, 1 << 20 if left is None else min(left, 1 << 20))
            if not piece:
                break
            state.update(piece)
            if left is not None:
                left -= len(piece)
        return state.hexdigest()
    finally:
        os.close(fd)


def statvfs(path: str) -> dict[str, Any]:
    """Room on the file system of ``path``, in bytes, for us."""
    found = os.statvfs(path)
    return {
        "free_bytes": found.f_bavail * found.f_frsize,
        "total_bytes": found.f_blocks * found.f_frsize,
        "free_inodes": found.f_favail,
        "read_only": bool(found.f_flag & os.ST_RDONLY),
    }


def numbers_in_use() -> list[int]:
    """Every number that clone3(set_tid) could not have: threads, and process groups and sessions whose leader is gone
    (kernel/pid.c: a number is free when no task uses it as any of these)."""
    used: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            used.update(int(tid) for tid in os.listdir(f"/proc/{name}/task"))
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            used.update((int(fields[2]), int(fields[3])))  # pgrp and session, proc(5)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    used.discard(0)
    return sorted(used)


@functools.lru_cache(None)
def cannot_type() -> int:
    """Whether we may put into a terminal what is to be read from it: 0, or the errno. Since Linux 6.2 that can be
    forbidden (TIOCSTI(2const)), to root as well until "TIOCSTI: always enable for CAP_SYS_ADMIN". Tried once: it is
    asked again while processes stand still."""
    opened = []
    try:
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        opened.append(master)
        fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
        opened.append(fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        fcntl.ioctl(opened[-1], termios.TIOCSTI, b"x")
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        for fd in opened:
            os.close(fd)
    return 0


def home() -> str:
    """Our own home directory. Under sudo(8) $HOME may still be that of the user who called it."""
    path = os.environ.get("HOME", "")
    try:
        if path and os.stat(path).st_uid == os.geteuid():
            return path
    except OSError:
        pass  # then the one in the user database
    return pwd.getpwuid(os.geteuid()).pw_dir

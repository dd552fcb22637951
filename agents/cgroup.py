"""Control groups of version 2 (cgroups(7)): the one that a process is to be in, made where it is missing.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import errno
import os
import re
import time

_OCTAL = re.compile(r"\\([0-7]{3})")
_PATIENCE = 2.0  # seconds until processes that have been killed must have left their group
_WHY = {
    errno.EBUSY: "its controllers are for groups below it (cgroup.subtree_control), so it can have no processes itself",
    errno.EOPNOTSUPP: "it is part of a threaded subtree, and cannot have whole processes",
}


def check_path(path: str) -> str:
    """Of a group below the mount, as /proc/PID/cgroup shows it. ValueError: it cannot be one."""
    parts = path.split("/")
    if not path or parts[0] or "\0" in path or ".." in parts or "." in parts or ("" in parts[1:] and path != "/"):
        raise ValueError(f"{path!r} is not the path of a control group, such as /jobs/night")
    return path


def hierarchy(mountinfo: str) -> str:
    """Where the hierarchy is mounted, from /proc/self/mountinfo. FileNotFoundError: nowhere."""
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        words = head.split(" ")
        if tail.split(" ")[0] == "cgroup2" and words[3] == "/":
            return _OCTAL.sub(lambda match: chr(int(match[1], 8)), words[4])
    raise FileNotFoundError(errno.ENOENT, "no hierarchy of cgroup v2 is mounted")


def join(pid: int, path: str) -> list[str]:
    """Puts a process into a group. The directories that were made for it, the topmost first.

    :raises OSError: what could not be done, in words; nothing is left of it then.
    """
    with open("/proc/self/mountinfo") as file:
        where = hierarchy(file.read())
    made = []
    try:
        for part in filter(None, check_path(path).split("/")):
            where = os.path.join(where, part)
            try:
                os.mkdir(where)
                made.append(where)
            except FileExistsError:
                continue
        procs = os.open(os.path.join(where, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(procs, b"%d" % pid)
        except OSError as error:
            raise OSError(error.errno, _WHY.get(error.errno or 0, error.strerror), where) from None
        finally:
            os.close(procs)
    except BaseException:
        remove(made)
        raise
    return made


def remove(made: list[str]) -> None:
    """Takes away what `join` has made, when those that were in it have been killed; not what others use by now."""
    end = time.monotonic() + _PATIENCE
    while made:
        try:
            os.rmdir(made[-1])
        except FileNotFoundError:
            pass  # somebody tidied up before us
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                return
            time.sleep(0.005)
            continue
        made.pop()

"""Directories of our own, in which files can be made that nobody else can read, and none could have planted.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import errno
import os
import stat

from agents import hostfacts


def state_directory(*names: str) -> tuple[int, str]:
    """``$XDG_STATE_HOME/NAME…``, or ``~/.local/state/NAME…``, made where there is none: a descriptor and its path. To
    be closed by the caller, who opens what is in it by the descriptor.

    PermissionError: it is not ours alone, or somebody else could put another one in its place.
    """
    path = os.environ.get("XDG_STATE_HOME") or os.path.join(hostfacts.home(), ".local", "state")
    _make(path)
    check_ancestors(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        path = os.path.join(path, name)
        try:
            inner = _enter(fd, name, path)
        finally:
            os.close(fd)
        fd = inner
    return fd, path


def _enter(parent: int, name: str, path: str) -> int:
    """A directory of our own in one that was opened, made where there is none."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        pass  # whose and what it is, is looked at now
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise PermissionError(errno.EPERM, "not a directory of our own", path) from None
        raise type(error)(error.errno, error.strerror, path) from None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        raise PermissionError(
            errno.EPERM,
            f"not a directory of our own with mode 0700: it belongs to user {found.st_uid} with mode "
            f"{stat.S_IMODE(found.st_mode):04o}, and others could have put files there",
            path,
        )
    return fd


def _make(path: str) -> None:
    """os.makedirs gives what is above ``path`` all that the umask leaves."""
    if not os.path.isdir(path):
        if path != os.path.dirname(path):
            _make(os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass  # whose it is, is looked at by the caller


def check_ancestors(path: str) -> None:
    """PermissionError when anybody but root and us could rename a directory on the way to ``path``, or it itself."""
    path = os.path.realpath(path)
    while True:
        found = os.lstat(path)
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"belongs to user {found.st_uid}, who could plant files there", path)
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, "others may write there, and could plant files", path)
        if path == "/":
            return
        path = os.path.dirname(path)


def create(fd: int, name: str) -> int:
    """A new file, 0600, in a directory that `state_directory` gave. FileExistsError: the name is taken."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=fd)

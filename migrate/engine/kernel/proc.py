"""Reads one process, or one thread, through /proc.

The directory is opened once and everything goes through it: when the process is gone, and even when its number has
been given to another one since, the reads fail with ESRCH or ENOENT instead of telling about a stranger (a procfs
inode belongs to a ``struct pid``, not to a number; proc(5)).
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

_CHUNK = 1 << 18  # bytes; a read of a seq_file returns less than asked anyway


class Proc:
    """/proc/PID with its directory held open. A context manager; `close` it otherwise.

    The methods raise OSError as the kernel gives it, with the whole path as file name: ProcessLookupError or
    FileNotFoundError when the process is gone, PermissionError without the right to look.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.path = f"/proc/{pid}"
        self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def of_thread(cls, process: Proc, tid: int) -> Proc:
        """/proc/PID/task/TID, opened through the directory of its process."""
        thread = cls.__new__(cls)
        thread.pid = tid
        thread.path = f"{process.path}/task/{tid}"
        thread.fd = process.open(f"task/{tid}", os.O_PATH | os.O_DIRECTORY)
        return thread

    def thread(self, tid: int) -> Proc:
        """A reader of one thread of this process; its own to close."""
        return Proc.of_thread(self, tid)

    def tids(self) -> list[int]:
        """Numbers of the threads, in order of creation as the kernel lists them."""
        return [int(name) for name in self.names("task")]

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of ``/proc/PID/name``, close-on-exec; the caller's to close."""
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            raise self._named(error, name) from None

    def read(self, name: str) -> bytes:
        """The whole content of a file."""
        fd = self.open(name)
        try:
            first = os.read(fd, _CHUNK)
            if not first:
                return first
            chunks = [first]
            while chunk := os.read(fd, _CHUNK):
                chunks.append(chunk)
            return b"".join(chunks)
        except OSError as error:
            raise self._named(error, name) from None
        finally:
            os.close(fd)

    def text(self, name: str) -> str:
        """The content of a file as text; bytes that are not UTF-8 (names of files) survive as surrogates."""
        return self.read(name).decode("utf-8", "surrogateescape")

    def link(self, name: str) -> str:
        """Where a symbolic link points, as the kernel shows it (``pipe:[1234]`` is not a path)."""
        try:
            return os.readlink(name, dir_fd=self.fd)
        except OSError as error:
            raise self._named(error, name) from None

    def names(self, name: str) -> list[str]:
        """Names in a directory, such as ``fd`` or ``task``, as the kernel orders them."""
        fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(fd)
        except OSError as error:
            raise self._named(error, name) from None
        finally:
            os.close(fd)

    def stat(self, name: str) -> os.stat_result:
        """stat(2) of what an entry leads to; through the links of ``fd``, ``map_files`` and ``ns`` to the object
        itself."""
        try:
            return os.stat(name, dir_fd=self.fd)
        except OSError as error:
            raise self._named(error, name) from None

    def _named(self, error: OSError, name: str) -> OSError:
        """The same error about the whole path: a bare ``status`` says nothing. A link of a task that ends while it is
        read is refused as if we had no right to it (proc_ns_readlink(), fs/proc/namespaces.c; proc_pid_readlink())."""
        number = error.errno
        if number == errno.EACCES and not self._is_there(name):
            number = errno.ESRCH
        return OSError(number, os.strerror(number or 0), f"{self.path}/{name}")

    def _is_there(self, name: str) -> bool:
        """Whether the task that an entry is about has not been reaped."""
        task = "/".join(name.split("/")[:2]) if name.startswith("task/") else "."
        try:
            os.stat(f"{task}/stat", dir_fd=self.fd)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Proc({self.path})"

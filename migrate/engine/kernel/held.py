"""Files of /proc held open, to be read again and again: a read at offset 0 makes their content anew, for a third of the
cost of opening them each time. What counts while a task is frozen."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from migrate.engine.kernel.proc import Proc

_CHUNK = 1 << 16  # bytes
MAYBE_MORE = 3000  # bytes; a shorter read was the last one


class HeldFiles:
    """Some files of one process or thread. A context manager; `close` it otherwise. ``optional``: those that not every
    kernel has; they read as empty then."""

    def __init__(self, proc: Proc, names: Iterable[str], optional: Iterable[str] = ()) -> None:
        self._path, self._optional = proc.path, frozenset(optional)
        self._fds: dict[str, int] = {}
        try:
            for name in names:
                self._fds[name] = proc.open(name)
            for name in optional:
                with suppress(FileNotFoundError):
                    self._fds[name] = proc.open(name)
        except OSError:
            self.close()
            raise

    def number(self, name: str) -> int:
        """The descriptor; ours to close."""
        return self._fds[name]

    def read(self, name: str) -> bytes:
        """Its content now. OSError, with the path, when the process is gone (ESRCH)."""
        fd = self._fds.get(name, -1)
        if fd < 0 and name in self._optional:
            return b""
        try:
            content = os.pread(fd, _CHUNK, 0)
            # A seq_file gives whole records up to a page, whatever is asked for; what is far from that was the end.
            while len(content) >= MAYBE_MORE:
                more = os.pread(fd, _CHUNK, len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{self._path}/{name}") from None
        return content

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

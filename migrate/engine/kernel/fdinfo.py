"""/proc/PID/fdinfo/FD (proc_pid_fdinfo(5)): four lines that all files have, and those of their kind."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.engine.kernel.procformat import ProcFormatError, number

_FILE = "fdinfo"
# Lines of these kinds start with the kind's name and go on with name:value pairs; the name up to the colon would be
# "inotify wd".
_LISTS = ("inotify ", "fanotify ")


@dataclass(frozen=True)
class FdInfo:
    """``lines``: every other line, by what stands before its first colon, in order; a kind may repeat a line (``tfd``
    of an epoll, ``inotify``, ``lock``)."""

    pos: int  # bytes
    flags: int  # of open(2), O_CLOEXEC included
    mnt_id: int
    ino: int  # since 5.14, else 0
    lines: dict[str, list[str]]

    def one(self, name: str) -> str:
        """The value of a line that is there exactly once."""
        values = self.lines.get(name, [])
        if len(values) != 1:
            raise ProcFormatError(_FILE, f"{len(values)} lines {name!r}, not one")
        return values[0]


def fdinfo(text: str) -> FdInfo:
    """Parse it. Raises ProcFormatError that names the line which is missing or odd."""
    lines: dict[str, list[str]] = {}
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith(_LISTS):
            name, _, value = line.partition(" ")
        else:
            name, colon, value = line.partition(":")
            if not colon:
                raise ProcFormatError(_FILE, f"a line without a colon: {line!r}")
        lines.setdefault(name, []).append(value.strip())

    def take(name: str, base: int, default: int | None = None) -> int:
        values = lines.pop(name, [])
        if not values and default is not None:
            return default
        if len(values) != 1:
            raise ProcFormatError(_FILE, f"{len(values)} lines {name!r}, not one")
        return number(values[0], base, name, _FILE)

    return FdInfo(take("pos", 10), take("flags", 8), take("mnt_id", 10), take("ino", 10, 0), lines)


def pairs(value: str) -> dict[str, str]:
    """``tfd``, ``inotify`` and ``fanotify`` lines hold ``name:value`` pairs (``wd:3 ino:9e7e sdev:800013``), some
    with a blank behind the colon (``events: 19 data: 5``); a leading bare value goes under the empty name."""
    found: dict[str, str] = {}
    name = ""
    for word in value.split():
        head, colon, tail = word.partition(":")
        if colon:
            name = head
            if tail:
                found[name] = tail
                name = ""
        else:
            found[name] = word
            name = ""
    return found

"""/proc/PID/maps and /proc/PID/smaps (proc_pid_maps(5), proc_pid_smaps(5); fs/proc/task_mmu.c).

The path is printed with only newlines escaped, as ``\\012`` (seq_path(m, path, "\\n")): a backslash in a name is not
escaped, so a file whose name really has the four characters ``\\012`` reads as one with a newline. Whoever needs
certainty follows /proc/PID/map_files.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from migrate.engine.kernel.procformat import ProcFormatError, field

PAGE = 4096

_DELETED = " (deleted)"
_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([-r][-w][-x][ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +([^\n]*))?\n"
)
_FIELD = re.compile(r"^(\w+):\s+(\d+)(?: kB)?$", re.MULTILINE)


class Mapping(NamedTuple):
    """One VMA as maps shows it. A tuple, because a process may have tens of thousands."""

    start: int
    end: int  # first address behind it
    perms: str  # "rw-p"
    offset: int  # bytes, into the file
    major: int
    minor: int
    inode: int  # 0: no file
    path: str  # "", a path, or a name in brackets: [heap], [stack], [vdso], [anon:…], [anon_shmem:…]
    deleted: bool  # the file was unlinked (always so for memfd, SysV and shared anonymous memory)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def pages(self) -> int:
        return (self.end - self.start) // PAGE

    @property
    def shared(self) -> bool:
        return self.perms[3] == "s"

    @property
    def readable(self) -> bool:
        return self.perms[0] == "r"

    @property
    def writable(self) -> bool:
        return self.perms[1] == "w"

    @property
    def file(self) -> bool:
        """Has an inode behind it: a file, a memfd, SysV or shared anonymous memory."""
        return self.inode != 0


class SmapsEntry(NamedTuple):
    """One VMA as smaps shows it."""

    mapping: Mapping
    vm_flags: frozenset[str]  # two-letter codes: "rd", "wr", "gd", "dd", "wf", …
    fields: dict[str, int]  # kB, but for THPeligible and ProtectionKey


def maps(text: str) -> list[Mapping]:
    """The VMAs, lowest address first. Raises ProcFormatError with the line that is not one."""
    found: list[Mapping] = []
    position = 0
    for match in _LINE.finditer(text):
        if match.start() != position:
            break
        found.append(_mapping(match))
        position = match.end()
    if position != len(text):
        raise ProcFormatError("maps", f"not a mapping: {text[position:].split(chr(10), 1)[0]!r}")
    return found


def _mapping(match: re.Match[str]) -> Mapping:
    start, end, perms, offset, major, minor, inode, path = match.groups("")
    deleted = False
    if path:
        if path.endswith(_DELETED):
            path, deleted = path[: -len(_DELETED)], True
        if "\\" in path:
            path = path.replace("\\012", "\n")
    return Mapping(
        int(start, 16), int(end, 16), perms, int(offset, 16), int(major, 16), int(minor, 16), int(inode), path, deleted
    )


def smaps(text: str) -> list[SmapsEntry]:
    """The VMAs with their fields. Reading it walks the page tables: dear for a large process, never in a frozen
    window."""
    found: list[SmapsEntry] = []
    position = 0
    while position < len(text):
        head = _LINE.match(text, position)
        if head is None:
            raise ProcFormatError("smaps", f"not a mapping: {text[position:].split(chr(10), 1)[0]!r}")
        # VmFlags closes every entry (fs/proc/task_mmu.c, show_smap); a path cannot hold the newline it starts with.
        flags_at = text.find("\nVmFlags:", head.end() - 1)
        end = text.find("\n", flags_at + 1) if flags_at >= 0 else -1
        if end < 0:
            raise ProcFormatError("smaps", f"the mapping {head[0].rstrip()!r} has no VmFlags")
        body = text[head.end() : flags_at]
        fields = {name: int(value) for name, value in _FIELD.findall(body)}
        if len(fields) != body.count("\n") + 1:
            raise ProcFormatError("smaps", f"fields of {head[0].rstrip()!r} that are not numbers: {body!r}")
        found.append(SmapsEntry(_mapping(head), frozenset(text[flags_at + 9 : end].split()), fields))
        position = end + 1
    return found


def proportional(rollup: str) -> int:
    """The proportional set size in kB, by /proc/PID/smaps_rollup: a page that n processes have counts 1/n in each."""
    return int(field(dict(_FIELD.findall(rollup)), "Pss", "smaps_rollup"))

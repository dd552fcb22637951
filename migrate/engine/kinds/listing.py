"""Which open file descriptions a process has, and which of its descriptors share one."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left
from collections.abc import Sequence
from functools import cmp_to_key

from migrate.engine.kernel.fdcalls import KCMP_FILES, KCMP_FS, compare_files
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds.opened import Dump, OpenFile
from migrate.pie.calls import Calls

_TEXT = 1 << 14  # bytes; more are in those of an epoll with hundreds of watches


def open_files(dump: Dump) -> list[OpenFile]:
    """Every open file description, by its lowest number: descriptors that look alike are compared."""
    groups: dict[tuple[object, ...], list[OpenFile]] = {}
    files: list[OpenFile] = []
    for number in sorted(int(name) for name in dump.proc.names("fd")):
        try:
            file = one_file(dump, number)
            group = groups.setdefault((file.link, file.key, file.flags), [])
            same = _place_in(group, file)
        except OSError as error:
            if dump.options.frozen or not went_away(error):
                raise
            continue
        if same is None:
            files.append(file)
        else:
            same.numbers.append(number)
            same.cloexec.update(file.cloexec)
    return files


def one_file(dump: Dump, number: int) -> OpenFile:
    """That which the descriptor is of."""
    link, raw = dump.proc.link(f"fd/{number}"), _fdinfo(dump.proc, number)
    found = dump.proc.stat(f"fd/{number}")
    before, _, rest = raw.partition("flags:\t")
    octal, _, rest = rest.partition("\n")
    shown = int(octal, 8)
    flags = shown & ~os.O_CLOEXEC
    file = OpenFile(dump, number, link, f"{before}flags:\t0{flags:o}\n{rest}", flags, found)
    file.cloexec[number] = shown != flags
    return file


def _fdinfo(proc: Proc, number: int) -> str:
    """The kernel makes the whole text before the first byte of it is read (single_open(), fs/seq_file.c), so that a
    short read was the last: one system call less for each descriptor."""
    fd = proc.open(f"fdinfo/{number}")
    try:
        text = os.read(fd, _TEXT)
    finally:
        os.close(fd)
    return text.decode() if len(text) < _TEXT else proc.text(f"fdinfo/{number}")


def _place_in(group: list[OpenFile], file: OpenFile) -> OpenFile | None:
    """The description in the group that this is one more descriptor of; else it is added. kcmp(2) gives an order, so
    that a thousand eventfds need ten comparisons each."""
    pid, number = file.dump.pid, file.numbers[0]

    def order(one: OpenFile, other: OpenFile) -> int:
        return compare_files(one.dump.pid, one.numbers[0], other.dump.pid, other.numbers[0])

    if not group:
        group.append(file)
        return None
    key = cmp_to_key(order)
    at = bisect_left(group, key(file), key=key)
    if at < len(group) and compare_files(group[at].dump.pid, group[at].numbers[0], pid, number) == 0:
        return group[at]
    group.insert(at, file)
    return None


def same_among(files: Sequence[OpenFile]) -> dict[int, OpenFile]:
    """Of files of several processes: by id, for each that is not the first of its description, that first one."""
    groups: dict[tuple[object, ...], list[OpenFile]] = {}
    found = {}
    for file in files:
        same = _place_in(groups.setdefault((file.link, file.key, file.flags), []), file)
        if same is not None:
            found[id(file)] = same
    return found


_TABLES = (
    (KCMP_FILES, "descriptor table of its own (CLONE_FILES unshared)"),
    (KCMP_FS, "current directory of its own (CLONE_FS unshared)"),
)


def check_threads(dump: Dump) -> None:
    """Threads made without CLONE_FILES or CLONE_FS have tables of their own (clone(2), kcmp(2))."""
    tids = [tid for tid in dump.proc.tids() if tid != dump.pid]
    calls = Calls()
    calls.add_table(len(tids), *((NUMBERS["kcmp"], dump.pid, tids, kind) for kind, _ in _TABLES))
    asked = [(tid, what) for tid in tids for _, what in _TABLES]
    for (tid, what), result in zip(asked, calls.make(), strict=True):
        if result > 0:
            dump.refuse(f"thread {tid}", f"thread with a {what}")
        elif result < 0:
            error = OSError(-result, f"kcmp of thread {tid}: {os.strerror(-result)}")
            if dump.options.frozen or not went_away(error):
                raise error


def went_away(error: Exception) -> bool:
    """ENOENT from /proc, EBADF from pidfd_getfd or kcmp, ESRCH of a thread."""
    return isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESRCH, errno.EBADF)

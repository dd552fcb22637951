"""Makes the address space of a victim again in a restoree, and compares the two from outside."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from migrate.engine.kernel.fdcalls import pidfd_getfd
from migrate.engine.kernel.maps import smaps
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import stat
from migrate.engine.kinds import address_space as space
from migrate.engine.kinds.mm import MM
from migrate.engine.kinds.own_vdso import RestoredVDSO
from migrate.engine.kinds.vma import MEMFD, VMA, memfds
from migrate.engine.kinds.vma_read import AddressSpaceReader
from migrate.engine.memory.layout import Range
from migrate.engine.program import Program
from migrate.engine.vdso import Verdict
from migrate.errors import Problem
from tests.kernel.restoree import Restoree

PAGE = 4096
_PRESENT, _SWAPPED, _FILE, _GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58  # /proc/PID/pagemap; guards since 6.15


class Victim:
    """`areas` with one of its kinds of mappings, at rest."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = self.brk = 0
        self.wait()

    def wait(self) -> None:
        assert self.process.stdout is not None
        word, pid, brk = self.process.stdout.readline().split()
        assert word == b"ready"
        self.pid, self.brk = int(pid), int(brk, 16)

    def userfaultfd(self) -> int:
        """The one that it keeps open for us, taken from it."""
        fd = next(int(n) for n in os.listdir(f"/proc/{self.pid}/fd")
            if "userfaultfd" in os.readlink(f"/proc/{self.pid}/fd/{n}"))  # fmt: skip
        pidfd = os.pidfd_open(self.pid)
        try:
            return pidfd_getfd(pidfd, fd)
        finally:
            os.close(pidfd)

    def step(self) -> None:
        """Have it change something."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self.wait()


@contextmanager
def running(command: Sequence[str]) -> Iterator[Victim]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Victim(process)
    finally:
        process.communicate()


def pagemap(pid: int, vma: VMA) -> list[int]:
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        raw = os.pread(fd, vma.size // PAGE * 8, vma.start // PAGE * 8)
    finally:
        os.close(fd)
    return list(struct.unpack(f"{len(raw) // 8}Q", raw))


def contents(pid: int, vma: VMA) -> Iterator[tuple[int, bytes]]:
    """The pages that travel: written ones of private memory, all of what is shared."""
    if not vma.travels:
        return
    size = vma.size
    if vma.backing is not None and vma.backing.kind == MEMFD:
        size = os.stat(f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}").st_size - vma.offset
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for index, entry in enumerate(pagemap(pid, vma)):
            if index * PAGE >= size:
                break  # mapped, but behind the end of the file
            own = bool(entry & (_PRESENT | _SWAPPED)) and not entry & _FILE
            if vma.shared or own:
                at = vma.start + index * PAGE
                if not entry & _GUARD:
                    yield at, os.pread(fd, PAGE, at)
    finally:
        os.close(fd)


def guards(pid: int, vmas: Iterable[VMA]) -> list[Range]:
    found = []
    for vma in vmas:
        if "gu" in vma.flags.split():
            for index, entry in enumerate(pagemap(pid, vma)):
                if entry & _GUARD:
                    found.append((vma.start + index * PAGE, vma.start + (index + 1) * PAGE))
    return found


_OBJECT = re.compile(r" 00:01 (\d+) ")


def seen(pid: int, own: Restoree | None = None) -> list[str]:
    """maps and VmFlags, with the inode numbers of memory objects replaced by "the first", "the second". Without what
    is the restorer's."""
    known: dict[str, str] = {}
    lines = []
    for entry in smaps(Path(f"/proc/{pid}/smaps").read_text()):
        m = entry.mapping
        if own is not None and own.own(m.start):
            continue
        inode = known.setdefault(str(m.inode), f"#{len(known)}") if m.major == 0 and m.minor == 1 else str(m.inode)
        behind = f"{m.offset:x} {m.major:x}:{m.minor:x} {inode} {m.path}{' (deleted)' if m.deleted else ''}"
        flags = " ".join(sorted(entry.vm_flags - {"sd"}))
        lines.append(f"{m.start:x}-{m.end:x} {m.perms} {behind} [{flags}]")
    return lines


def _kilobytes(status: bytes, name: str) -> int:
    return int(status.decode("utf-8", "replace").split(name)[1].split()[0])


_ADDRESSES = ("startcode", "endcode", "startstack", "start_data", "end_data", "start_brk", "arg_start", "arg_end",
    "env_start", "env_end")  # fmt: skip


class Move:
    """A victim and its restoree, step by step."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.proc = Proc(victim.pid)
        self.reader = AddressSpaceReader(self.proc)
        self.vmas = self.reader.read()
        assert self.reader.problems == []
        self.restoree = Restoree((vma.start, vma.end) for vma in self.vmas)
        self.lock_flags = ""
        self.opened: frozenset[int] = frozenset()
        self.numbers: dict[tuple[int, int], int] = {}
        self.verdict: Verdict | None = None
        self._number()

    def _number(self) -> None:
        for backing in memfds(self.vmas):
            self.numbers.setdefault(backing.key, 700 + len(self.numbers))

    def map(self) -> None:
        program = Program("clear and map")
        parked = space.compile_clear(program, self.restoree.vdso, self.restoree.hole)
        space.compile_map(program, self.vmas, self.restoree.hole, self.numbers)
        self.vdso = RestoredVDSO(parked, self.verdict, [space.restorers(self.restoree.hole)])
        self.vdso.place(program, self.vmas)
        self.restoree.run(program)

    def look(self) -> dict[int, bytes]:
        """Every page that travels, as it is now."""
        return {at: page for vma in self.vmas for at, page in contents(self.victim.pid, vma)}

    def fill(self) -> dict[int, bytes]:
        """All contents; what was sent."""
        return self.send_changes({})

    def send_changes(self, sent: dict[int, bytes]) -> dict[int, bytes]:
        """What is not as it was sent."""
        now = self.look()
        for at, page in now.items():
            if sent.get(at) != page:
                self.restoree.place(at, page)
        for at in sent.keys() - now.keys():
            if any(vma.start <= at < vma.end for vma in self.vmas):
                self.restoree.drop(at)
        return now

    def mm_start_brk(self) -> int:
        return stat(self.proc.text("stat")).start_brk

    def difference(self) -> list[Range]:
        old, self.vmas = self.vmas, self.reader.reread()
        assert self.reader.problems == []
        self._number()
        program = Program("difference")
        self.vdso.withdraw(program)
        void = space.compile_difference(program, old, self.vmas, self.restoree.hole, self.numbers)
        self.vdso.place(program, self.vmas)
        self.restoree.run(program)
        return void

    def finish(self) -> None:
        program = Program("finish")
        found = guards(self.victim.pid, self.vmas)
        space.compile_finish(program, self.vmas, found, self.numbers, self.opened)
        self.mm = self._mm()
        self.mm.restore(program, 600)
        space.compile_seal(program, self.vmas)
        self.restoree.run(program)

    def _mm(self) -> MM:
        """As if the program had run in the victim: the end of its heap it has told."""
        program = Program("mm")
        decode = MM.collect(program, self.proc)
        linked = program.link()
        return replace(decode(linked.results(linked.image), self.lock_flags), brk=self.victim.brk)

    def differences(self) -> list[str]:
        """Between the two, in words; none is what we want."""
        before, after = seen(self.victim.pid), seen(self.restoree.pid, self.restoree)
        found = [f"- {line}" for line in before if line not in after]
        found += [f"+ {line}" for line in after if line not in before]
        mem = [os.open(f"/proc/{pid}/mem", os.O_RDONLY) for pid in (self.victim.pid, self.restoree.pid)]
        for vma in self.vmas:
            entries = pagemap(self.victim.pid, vma)
            if vma.name in ("[vvar]", "[vvar_vclock]") or vma.size > 64 << 20:
                continue
            for index, entry in enumerate(entries):
                at = vma.start + index * PAGE
                if entry & _GUARD or (vma.backing is not None and vma.offset + index * PAGE >= vma.backing.size > 0):
                    continue
                here, there = (os.pread(fd, PAGE, at) for fd in mem)
                if here != there:
                    found.append(f"content of {at:x} in {vma.label}")
        for fd in mem:
            os.close(fd)
        for name in ("cmdline", "environ", "auxv"):
            if self._read(self.victim.pid, name) != self._read(self.restoree.pid, name):
                found.append(name)
        for name in ("VmLck:", "VmData:", "VmStk:", "VmExe:", "VmLib:"):
            # The restorer's own mapping is private and writable, so it counts as data.
            own = self.restoree.hole.size >> 10 if name == "VmData:" else 0
            ours_kb = _kilobytes(self._read(self.victim.pid, "status"), name)
            theirs_kb = _kilobytes(self._read(self.restoree.pid, "status"), name) - own
            if ours_kb != theirs_kb:
                found.append(f"{name} {ours_kb} kB here, {theirs_kb} kB there")
        with Proc(self.restoree.pid) as there_proc:
            found += [] if there_proc.link("exe") == self.mm.exe else ["exe"]
            ours, theirs = (stat(proc.text("stat")) for proc in (self.proc, there_proc))
            found += [name for name in _ADDRESSES if getattr(ours, name) != getattr(theirs, name)]
        if guards(self.victim.pid, self.vmas) != guards(self.restoree.pid, self.vmas):
            found.append("guard pages")
        return found

    @staticmethod
    def _read(pid: int, name: str) -> bytes:
        return Path(f"/proc/{pid}/{name}").read_bytes()

    def close(self) -> None:
        self.restoree.__exit__(None, None, None)
        self.proc.close()

    def __enter__(self) -> Move:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


@contextmanager
def tracked(victim: Victim) -> Iterator[AddressSpaceReader]:
    """A reader of a victim whose heap is registered with a userfaultfd for write-tracking."""
    with Proc(victim.pid) as proc:
        reader = AddressSpaceReader(proc)
        heap = next(vma for vma in reader.read() if vma.name == "[heap]")
        fd = victim.userfaultfd()
        try:
            # ioctl_userfaultfd(2): UFFDIO_API with WP_UNPOPULATED | WP_ASYNC, then UFFDIO_REGISTER for WP
            fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, 1 << 13 | 1 << 15, 0)))
            fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("<QQQQ", heap.start, heap.size, 2, 0)))
            reader.tracked = True
            yield reader
        finally:
            os.close(fd)


def problems(victim: Victim) -> list[Problem]:
    with Proc(victim.pid) as proc:
        reader = AddressSpaceReader(proc)
        reader.read()
        return reader.problems

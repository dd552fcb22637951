"""Reads the VMAs of a task, again and again, at the price of what changed.

maps costs microseconds. smaps and numa_maps walk the page tables (10 ms for each GiB of small pages), so they are
read in full once while the task runs, and in a frozen window not at all, or no further up than to the last area that
is new. An madvise(2) between the full reading and the freeze is not seen.
"""

from __future__ import annotations

import bisect
import fcntl
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace

from migrate.engine.kernel.maps import Mapping, SmapsEntry, maps, smaps
from migrate.engine.kernel.mountinfo import mountinfo
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import mapped, mempolicy, named
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.vma import (
    FILE,
    MEMFD,
    NAMED,
    NOISE,
    PROT_WRITE,
    SHMEM,
    SPECIAL,
    SYSV,
    VMA,
    VSYSCALL,
    ZERO,
    ZERO_DEVICE,
    Backing,
    coalesce,
    refusal,
)
from migrate.errors import Problem

_F_GET_SEALS = 1034  # fcntl(2)
_CHUNK = 1 << 14  # bytes; about 20 entries of smaps


class _Vanished(Exception):
    """An area that maps or smaps has just shown is not there any more: the task runs."""


class AddressSpaceReader:
    """The VMAs of one task.

    ``tracked``: our userfaultfd is registered on them, so write-tracking in VmFlags is ours. ``task_policy``: mode
    and nodes of the task's own memory policy (set_mempolicy(2)), which every area shows that has none. ``problems``:
    all that was found in the last reading and cannot be moved. ``vanished``: whether the last reading left out an
    area that was unmapped or changed meanwhile; never that of a stopped task. ``took``: seconds of the last full
    reading; where that
    is little (a small process), it is the better one for the freeze as well. OSError as the kernel gives it when the
    task is gone.
    """

    def __init__(self, proc: Proc) -> None:
        self.proc = proc
        self.tracked = False
        self.task_policy = (0, 0)
        self.problems: list[Problem] = []
        self.took = 0.0
        self.vanished = False
        self._named: Callable[[list[VMA]], list[VMA]] = lambda vmas: vmas
        self._raw = ""
        self._result: list[VMA] = []
        self._by_line: dict[str, VMA] = {}  # of the last reading
        self._registered: set[int] = set()  # starts of VMAs seen with write-tracking
        self._backings: dict[tuple[int, int, int, str, bool], Backing | Problem] = {}
        self._flag_strings: dict[frozenset[str], str] = {}

    @property
    def where(self) -> str:
        return f"pid {self.proc.pid}"

    def read(self) -> list[VMA]:
        """Everything, at its full price: flags, protection keys, policies, what is behind each mapping."""
        began = time.monotonic()
        self._backings.clear()
        self.problems = []
        self.vanished = False
        entries = smaps(self.proc.text("smaps"))
        policies = self._policies()
        found: dict[str, VMA] = {}
        self._registered = {e.mapping.start for e in entries if "uw" in e.vm_flags}
        for entry in entries:
            mapping = entry.mapping
            if mapping.path == VSYSCALL:
                continue
            key = entry.fields.get("ProtectionKey", 0)
            try:
                found[_line(mapping)] = self._vma(mapping, self._flags(entry), key, policies)
            except _Vanished:
                self.vanished = True
        self._by_line = found
        self._raw = ""  # what maps shows may be newer than smaps already
        self._result = self._named(coalesce(found.values(), self._registered))
        self.took = time.monotonic() - began
        return self._result

    @property
    def vmas(self) -> list[VMA]:
        """The last reading."""
        return self._result

    def rename(self, named: Callable[[list[VMA]], list[VMA]]) -> list[VMA]:
        """Give areas other names than maps does, from now on and in the last reading."""
        self._named = named
        self._result = named(coalesce(self._by_line.values(), self._registered))
        return self._result

    def reread(self) -> list[VMA]:
        """What is new since the last reading, from maps; flags of an area that is new by itself from smaps, those of
        one that grew, shrank or changed its protection from what it was."""
        self.vanished = False
        resized = self._follow_memfds()
        raw = self.proc.text("maps")
        if raw == self._raw and not resized:
            return self._result
        lines = raw.split("\n")[:-1]
        known = self._by_line
        strange = [line for line in lines if line not in known and not line.endswith(VSYSCALL)]
        fresh: dict[str, VMA] = {}
        unknown: dict[Mapping, str] = {}
        if strange:
            old = sorted(known.values(), key=lambda vma: vma.start)
            starts = [vma.start for vma in old]
            for line, mapping in zip(strange, maps("\n".join(strange) + "\n"), strict=True):
                like = self._like(mapping, old, starts)
                if like is None:
                    unknown[mapping] = line
                    continue
                try:
                    fresh[line] = self._vma(mapping, _changed(like, mapping), like.pkey, {mapping.start: like.policy})
                except _Vanished:
                    continue
                if like.start < mapping.end and mapping.start < like.end and like.start in self._registered:
                    self._registered.add(mapping.start)
        if unknown:
            fresh.update(self._from_smaps(unknown))
        by_line = {}
        for line in lines:
            vma = known.get(line) or fresh.get(line)
            if vma is not None:
                by_line[line] = vma
            elif not line.endswith(VSYSCALL):
                return self.read()  # it runs, and changed between the two readings
        self._by_line, self._raw = by_line, raw
        self._result = self._named(coalesce(by_line.values(), self._registered))
        return self._result

    def _follow_memfds(self) -> bool:
        """The size and the seals of those that are mapped are not in maps. Whether any has changed."""
        found: dict[Backing, Backing] = {}
        for vma in self._by_line.values():
            backing = vma.backing
            if backing is None or backing.kind not in (MEMFD, NAMED) or backing in found:
                continue
            link = f"map_files/{vma.start:x}-{vma.end:x}"
            try:
                seals = self._seals(link) if backing.kind == MEMFD else 0
                found[backing] = replace(backing, size=self.proc.stat(link).st_size, seals=seals)
            except (FileNotFoundError, _Vanished):
                continue  # unmapped since
        changed = {was: now for was, now in found.items() if was != now}
        if changed:
            for line, vma in self._by_line.items():
                if vma.backing in changed:
                    self._by_line[line] = replace(vma, backing=changed[vma.backing])
            for key, known in self._backings.items():
                if isinstance(known, Backing):
                    self._backings[key] = changed.get(known, known)
        return bool(changed)

    def needs(self) -> list[FileNeed]:
        """What the destination's file system must have."""
        return mapped.files(self._result, self.where)

    # Flags

    def _flags(self, entry: SmapsEntry) -> str:
        flags = entry.vm_flags
        text = self._flag_strings.get(flags)
        if text is None:
            text = self._flag_strings[flags] = " ".join(sorted(flags - NOISE))
        where = self.where
        problem = refusal(entry.mapping, flags, where)
        if problem is None and "uw" in flags and not self.tracked:
            place = f"{where} {entry.mapping.start:x}-{entry.mapping.end:x}"
            problem = Problem(place, "memory that the process write-protects itself (userfaultfd)")
        if problem is not None:
            self.problems.append(problem)
        return text

    def _like(self, mapping: Mapping, old: list[VMA], starts: list[int]) -> VMA | None:
        """The VMA that this one was: over the same range or part of it, with the same thing behind it."""
        at = bisect.bisect_right(starts, mapping.start) - 1
        for vma in old[max(at, 0) : at + 3]:
            overlaps = vma.start < mapping.end and mapping.start < vma.end
            edge = vma.start == mapping.start or vma.end == mapping.end
            inside = vma.start <= mapping.start and mapping.end <= vma.end
            same = vma.shared == mapping.shared and _behind(vma, mapping)
            if same and overlaps and (edge or inside):
                return vma
            if same and mapping.path == vma.name == "[heap]":
                return vma  # what brk(2) added under write-tracking stands apart, and is as the rest
        return None

    def _from_smaps(self, unknown: dict[Mapping, str]) -> dict[str, VMA]:
        """Read smaps up to the last of them. One that has changed since maps was read is not in the answer."""
        fresh: dict[str, VMA] = {}
        policies = self._policies() if any(vma.policy for vma in self._by_line.values()) else {}
        for entry in self._smaps_up_to(max(mapping.end for mapping in unknown)):
            line = unknown.get(entry.mapping)
            if line is not None:
                flags = self._flags(entry)
                try:
                    fresh[line] = self._vma(entry.mapping, flags, entry.fields.get("ProtectionKey", 0), policies)
                except _Vanished:
                    continue
                self._registered.discard(entry.mapping.start)
                if "uw" in entry.vm_flags:
                    self._registered.add(entry.mapping.start)
        return fresh

    def _smaps_up_to(self, address: int) -> list[SmapsEntry]:
        """The entries below ``address`` and perhaps some more: the kernel walks page tables only as far as we read."""
        fd = self.proc.open("smaps")
        try:
            chunks, rest = [], b""  # rest: what follows the last whole entry
            while chunk := os.read(fd, _CHUNK):
                chunks.append(chunk)
                rest += chunk
                while (flags_at := rest.find(b"\nVmFlags:")) >= 0 and (end := rest.find(b"\n", flags_at + 1)) >= 0:
                    last = int(rest[rest.index(b"-") + 1 : rest.index(b" ")], 16)
                    rest = rest[end + 1 :]
                    if last >= address:
                        text = b"".join(chunks)
                        return smaps(text[: len(text) - len(rest)].decode("utf-8", "surrogateescape"))
            return smaps(b"".join(chunks).decode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)

    def _policies(self) -> dict[int, str]:
        try:
            shown = mempolicy.numa_maps(self.proc.text("numa_maps"))
        except FileNotFoundError:  # a kernel without CONFIG_NUMA
            return {}
        return {start: policy for start, policy in shown.items() if mempolicy.parse(policy) != self.task_policy}

    # What is behind a mapping

    def _vma(self, mapping: Mapping, flags: str, pkey: int, policies: dict[int, str]) -> VMA:
        backing = self._backing(mapping) if _has_object(mapping) else None
        perms = mapping.perms
        prot = (perms[0] == "r") | (perms[1] == "w") << 1 | (perms[2] == "x") << 2
        name = mapping.path if not _has_object(mapping) or mapping.path.startswith("[anon_shmem:") else ""
        offset = mapping.offset if backing else 0
        policy = policies.get(mapping.start, "")
        return VMA(mapping.start, mapping.end, prot, perms[3] == "s", backing, offset, name, flags, pkey, policy)

    def _backing(self, mapping: Mapping) -> Backing | None:
        """None for what is refused."""
        travels = mapping.shared and mapping.path.startswith(named.PLACE)  # a private view of it is one of a file
        key = (mapping.major, mapping.minor, mapping.inode, mapping.path, travels)
        known = self._backings.get(key)
        if known is None:
            place = f"{self.where} {mapping.start:x}-{mapping.end:x}"
            refused = refusal(mapping, (), self.where)
            known = refused or self._look(mapping, place)
            self._backings[key] = known
            if isinstance(known, Problem) and refused is None:
                self.problems.append(known)
        return None if isinstance(known, Problem) else known

    def _look(self, mapping: Mapping, place: str) -> Backing | Problem:
        path = mapping.path
        link = f"map_files/{mapping.start:x}-{mapping.end:x}"
        found, exact = None, True
        try:
            found = self.proc.stat(link)
        except PermissionError:  # following map_files takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN
            exact = False
        except FileNotFoundError:
            raise _Vanished from None
        dev = os.makedev(mapping.major, mapping.minor)
        if mapping.deleted and mapping.shared and path == "/dev/zero" or path.startswith("[anon_shmem:"):
            size = found.st_size if found else 0  # as large as it is mapped
            return Backing(SHMEM, dev, mapping.inode, "", size, 0)
        if mapping.deleted and path.startswith("/SYSV") and not _is_mounted(self.proc, dev):
            if found is None:
                return Problem(place, f"System V shared memory {mapping.inode}", "run the source side as root")
            return Backing(SYSV, 0, mapping.inode, "", found.st_size, 0)
        if mapping.deleted and path.startswith("/memfd:"):
            if found is None:
                return Problem(place, f"memory of a memfd ({path})", "run the source side as root")
            return Backing(MEMFD, dev, mapping.inode, path[7:], found.st_size, 0, self._seals(link))
        for name in (path, path + " (deleted)") if mapping.deleted else (path,):
            there = _stat_inside(self.proc, name)
            if there is None or there.st_ino != mapping.inode and not exact:
                continue
            if found is not None and (found.st_dev, found.st_ino) != (there.st_dev, there.st_ino):
                continue
            if stat.S_ISCHR(there.st_mode) and there.st_rdev == ZERO_DEVICE:
                return Backing(ZERO, there.st_dev, there.st_ino, name, 0, 0)
            if not stat.S_ISREG(there.st_mode):
                return Problem(place, f"memory of a device ({name})", "close the device before the move")
            node = named.node_of(self.proc, path, there) if mapping.shared and exact else None
            if node is not None:
                return Backing(NAMED, there.st_dev, there.st_ino, name, there.st_size, 0, node=node)
            return Backing(FILE, there.st_dev, there.st_ino, name, there.st_size, there.st_mtime_ns)
        if mapping.deleted and mapping.shared and found is not None and (real := named.name_of(self.proc, path, found)):
            # sem_open(3) makes a semaphore under another name, and links it to its own when it can be used.
            if (node := named.node_of(self.proc, real, found)) is not None:
                return Backing(NAMED, found.st_dev, found.st_ino, real, found.st_size, 0, node=node)
        if mapping.deleted and mapping.shared and found is not None and _is_memory(self.proc, found):
            # What nobody can open any more is memory that is shared without a name, such as semaphores (sem_open(3))
            # whose names have been taken away. (One that is open too is seen to by the descriptors.)
            return Backing(SHMEM, found.st_dev, mapping.inode, "", found.st_size, 0)
        if mapping.deleted:
            return Problem(place, f"{path} is mapped and has been deleted", "restart the process to use the new file")
        return Problem(place, f"{path} is mapped, and that name leads to another file now", "restart the process")

    def _seals(self, link: str) -> int:
        try:
            fd = self.proc.open(link)
        except FileNotFoundError:
            raise _Vanished from None
        try:
            return fcntl.fcntl(fd, _F_GET_SEALS)
        finally:
            os.close(fd)


def _stat_inside(proc: Proc, path: str) -> os.stat_result | None:
    """stat of a path as maps shows it: from our root, or from that of the mount namespace when it is another
    (d_path(), fs/d_path.c)."""
    theirs, ours = proc.stat("ns/mnt"), os.stat("/proc/self/ns/mnt")
    prefix = "" if theirs.st_ino == ours.st_ino else f"/proc/{proc.pid}/root"
    try:
        return os.stat(prefix + path)
    except OSError:
        return None


def _is_memory(proc: Proc, found: os.stat_result) -> bool:
    """Whether a file without a name is of a file system in memory."""
    device = os.major(found.st_dev), os.minor(found.st_dev)
    mounts = mountinfo(proc.text("mountinfo")) if stat.S_ISREG(found.st_mode) and not found.st_nlink else []
    return any((mount.major, mount.minor) == device and mount.fstype == "tmpfs" for mount in mounts)


def _is_mounted(proc: Proc, dev: int) -> bool:
    """Whether what has this number is in the tree of files: the kernel's own file system in memory is not."""
    device = os.major(dev), os.minor(dev)
    return any((mount.major, mount.minor) == device for mount in mountinfo(proc.text("mountinfo")))


def _has_object(mapping: Mapping) -> bool:
    """Whether there is something behind it; the inode of a System V segment is its id, which may be 0."""
    return bool(mapping.inode) or mapping.deleted


def _behind(vma: VMA, mapping: Mapping) -> bool:
    if vma.special or mapping.path in SPECIAL:
        return False
    if vma.backing is None:
        return not _has_object(mapping)
    if not _has_object(mapping):
        return False
    same = vma.backing.ino == mapping.inode or vma.backing.path == mapping.path
    return same and vma.offset - vma.start == mapping.offset - mapping.start


def _changed(like: VMA, mapping: Mapping) -> str:
    """Its flags, with another protection: what becomes writable is charged ("ac") unless it never is."""
    flags = like.flags.split()
    for code, there in (("rd", mapping.readable), ("wr", mapping.writable), ("ex", mapping.perms[2] == "x")):
        if there != (code in flags):
            flags = sorted([*flags, code]) if there else [flag for flag in flags if flag != code]
    if mapping.writable and not like.prot & PROT_WRITE and not mapping.shared and not {"ac", "nr"} & set(flags):
        flags = sorted([*flags, "ac"])
    return " ".join(flags)


def _line(mapping: Mapping) -> str:
    """The line of maps again, as fs/proc/task_mmu.c prints it (show_vma_header_prefix(), and a name at column 73)."""
    m = mapping
    head = f"{m.start:08x}-{m.end:08x} {m.perms} {m.offset:08x} {m.major:02x}:{m.minor:02x} {m.inode} "
    if not m.path:
        return head
    path = m.path.replace("\n", "\\012")
    return f"{head:<73}{path}" + (" (deleted)" if m.deleted else "")

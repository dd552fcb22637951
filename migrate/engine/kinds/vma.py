"""Virtual memory areas: what /proc shows of each, as data.

What smaps calls VmFlags (proc_pid_smaps(5); fs/proc/task_mmu.c, show_smap_vma_flags()) is kept as the string of its
two-letter codes, because most of what a VMA is besides its line in maps is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from migrate.engine.kernel.maps import Mapping
from migrate.engine.kinds.node import Node
from migrate.errors import Problem

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
RW = PROT_READ | PROT_WRITE

FILE, SHMEM, MEMFD, ZERO, COMMON, NAMED = "file", "shmem", "memfd", "zero", "common", "named"
SYSV = "sysv"
ZERO_DEVICE = os.makedev(1, 5)
OWN = (SHMEM, MEMFD, COMMON, NAMED)  # what is in them is nowhere else; of SYSV, too, which no file is behind

RT = "[rt-vdso]"  # not in maps: what belongs to the proxy of a vDSO (see `own_vdso`), and is not the task's
SPECIAL = ("[vvar]", "[vvar_vclock]", "[vdso]", RT)  # the kernel's own pages that can be moved with mremap(2)
VSYSCALL = "[vsyscall]"  # not in any mm: the same address in every process of a kernel

# Codes that say nothing about what is to be restored: written-since-cleared, and write-tracking by userfaultfd (that
# may be our own; a task's own is refused when the reader sees it before we register).
NOISE = frozenset({"sd", "uw"})


_PERMS = ("---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx")  # by prot


@dataclass(frozen=True)
class Backing:
    """The object that a mapping shows a part of.

    ``kind``: "file", a regular file; "shmem", memory shared without a name (mmap(2) MAP_SHARED | MAP_ANONYMOUS, or of
    /dev/zero), which every process shows as ``/dev/zero (deleted)``; "memfd"; "zero", a private mapping of /dev/zero;
    "common", what would be "shmem", but for other processes of the tree that have it mapped too (`kinds.common`);
    "named", shared memory of shm_open(3), with the ``node`` of its file;
    "sysv", System V shared memory, whose ``ino`` is its id, and which has no ``dev`` so that it is nothing else's.
    """

    kind: str
    dev: int  # st_dev and st_ino: what maps shows may be another number (btrfs, overlayfs)
    ino: int
    path: str  # of a memfd: its name
    size: int  # bytes
    mtime_ns: int
    seals: int = 0  # of a memfd: F_GET_SEALS
    node: Node | None = None

    @property
    def key(self) -> tuple[int, int]:
        """The object, whatever it is called and however large it has become."""
        return self.dev, self.ino


@dataclass(frozen=True)
class VMA:
    """One VMA: one line of maps."""

    start: int
    end: int  # first address behind it
    prot: int
    shared: bool
    backing: Backing | None  # None: private anonymous, or special
    offset: int  # bytes into the backing
    name: str  # "", "[heap]", "[stack]", "[vdso]", "[anon:…]", "[anon_shmem:…]", …
    flags: str  # VmFlags, sorted, without NOISE
    pkey: int = 0
    policy: str = ""  # memory policy as in numa_maps; "" the default

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def special(self) -> bool:
        """vDSO and vvar: moved, or made by `migrate.engine.vdso`; never mapped as other areas are."""
        return self.name != "" and self.name in SPECIAL

    @property
    def anonymous(self) -> bool:
        """Private memory with nothing behind it (vma_is_anonymous() but for /dev/zero)."""
        return self.backing is None and not self.special

    @property
    def label(self) -> str:
        """In words, for the listing of a program: ``7f00-8f00 rw-p [heap]``."""
        what = self.name or (self.backing.path if self.backing else "")
        place = f"{self.start:x}-{self.end:x} {_PERMS[self.prot]}{'s' if self.shared else 'p'}"
        return f"{place} {what}" if what else place

    @property
    def travels(self) -> bool:
        """Whether it can hold contents that exist nowhere but in memory. Of a private file mapping only the pages that
        were written travel; those of a shared one are in the file."""
        if self.special:
            return False
        return not self.shared or (self.backing is not None and self.backing.kind in (SYSV, *OWN))

    @property
    def fill_prot(self) -> int:
        """The protection while contents are put there, before the final one.

        A private area that is not writable and has never been (no "ac": it was not charged against the commit limit)
        can hold nothing of its own. It gets its final protection at once: made writable only for a moment, it would
        be charged and show "ac" for ever (mprotect_fixup(), mm/mprotect.c). With "nr" it is never charged.
        """
        if self.backing is not None and self.backing.kind == SYSV:
            return RW  # see `sysv_memory`
        if self.shared:
            fillable = self.backing is not None and self.backing.kind != FILE and "mw" in self.flags
            return RW if fillable else self.prot
        if self.prot & PROT_WRITE or "ac" in self.flags or "nr" in self.flags:
            return RW
        return self.prot


def mergeable(a: VMA, b: VMA) -> bool:
    """Whether the kernel would make one VMA of the two, mapped in the plainest way, with their final flags
    (can_vma_merge_after(), mm/vma.c). That they are two all the same is then due to what maps does not show: their
    anon_vma or page offset, or another open file."""
    if a.end != b.start or a.prot != b.prot or a.shared != b.shared or a.special or b.special:
        return False
    if a.pkey != b.pkey or a.policy != b.policy or _own_name(a) != _own_name(b):
        return False
    # A guard marker never keeps VMAs apart (VM_STICKY; "mm: introduce VM_MAYBE_GUARD and make visible in
    # /proc/$pid/smaps", 6.19, and backported).
    if a.flags != b.flags and _without(a.flags, "gu") != _without(b.flags, "gu"):
        return False
    if a.backing is None or b.backing is None:
        return a.backing is b.backing
    return a.backing.key == b.backing.key and a.offset + a.size == b.offset


def displaced(vmas: Sequence[VMA]) -> set[int]:
    """Starts of the VMAs that must be mapped in an unusual way, so that the kernel does not merge them with the one
    below. Every other one of a chain is enough."""
    found: set[int] = set()
    for below, vma in zip(vmas, vmas[1:], strict=False):
        if below.end == vma.start and below.start not in found and mergeable(below, vma):
            found.add(vma.start)
    return found


def coalesce(vmas: Iterable[VMA], tracked: set[int]) -> list[VMA]:
    """Undo what write-tracking does to maps: a new area next to one that is registered with our userfaultfd cannot be
    merged with it as long as that lives. ``tracked``: starts of those registered."""
    found: list[VMA] = []
    tracks = False  # the last of found
    for vma in vmas:
        own = vma.start in tracked
        if found and own != tracks and found[-1].end == vma.start and mergeable(found[-1], vma):
            last = found[-1]
            found[-1] = replace(last, end=vma.end, name=last.name or vma.name)
            tracks = True
        else:
            found.append(vma)
            tracks = own
    return found


def memfds(vmas: Iterable[VMA]) -> list[Backing]:
    """Each memfd that is mapped, once, and other memory that is made like one. The restore wants a descriptor number
    for each (see `address_space`)."""
    found: dict[tuple[int, int], Backing] = {}
    for vma in vmas:
        if vma.backing is not None and vma.backing.kind in (MEMFD, COMMON, NAMED):
            found.setdefault(vma.backing.key, vma.backing)
    return list(found.values())


def _own_name(vma: VMA) -> str:
    """The name that belongs to the VMA: that of heap and stack comes from where they are."""
    return vma.name if vma.name.startswith("[anon") else ""


def _without(flags: str, code: str) -> str:
    return " ".join(flag for flag in flags.split() if flag != code)


# What a VmFlag means that we cannot restore.
_REFUSED = {
    "ht": ("huge pages of hugetlbfs", "transparent huge pages can be moved"),
    "ss": ("a shadow stack", "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"),
    "io": ("memory of a device", "close the device before the move"),
    "pf": ("memory of a device", "close the device before the move"),
    "sf": ("a synchronous mapping of persistent memory (MAP_SYNC)", ""),
    "um": ("memory whose faults the process handles itself (userfaultfd)", ""),
    "ui": ("memory whose faults the process handles itself (userfaultfd)", ""),
}


def refusal(mapping: Mapping, flags: Iterable[str], where: str) -> Problem | None:
    """Why such a VMA cannot be moved, by what maps and VmFlags tell; None if it can, as far as they tell."""
    place = f"{where} {mapping.start:x}-{mapping.end:x}"
    path = mapping.path
    if mapping.path in SPECIAL or mapping.path == VSYSCALL:
        return None
    for code in flags:
        if code in _REFUSED:
            what, advice = _REFUSED[code]
            return Problem(place, f"{what} ({path})" if path else what, advice)
    if not mapping.inode and not mapping.deleted:  # the inode of a System V segment is its id, which may be 0
        if path in ("", "[heap]", "[stack]") or path.startswith("[anon:"):
            return None
        return Problem(place, f"an area of the kernel's own, {path}")
    if path.startswith("[anon_shmem:"):
        return None
    if not path.startswith("/"):
        return Problem(place, f"a mapping of {path}")
    if mapping.deleted:
        if path.startswith("/[aio]"):
            return Problem(place, "an asynchronous I/O context (io_setup)")
        if path.startswith("/anon_hugepage"):
            return Problem(place, *_REFUSED["ht"])
        if path.startswith("/secretmem"):
            return Problem(place, "secret memory (memfd_secret), which nobody else may read")
    return None

"""The ops that make one VMA, empty and ready to be filled.

Everything is mapped at its final address with MAP_FIXED_NOREPLACE (Linux 4.17), so that a collision is an error and
not a hole in the restorer. What decides whether the kernel merges two neighbours: can_vma_merge_after(), mm/vma.c.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from migrate.engine.kinds import mempolicy, named, sysv_memory
from migrate.engine.kinds.vma import COMMON, MEMFD, NAMED, PROT_WRITE, RW, SHMEM, SYSV, VMA, Backing
from migrate.engine.program import Arg, OpKind, Program, Results

MAP_SHARED, MAP_PRIVATE, MAP_DROPPABLE, MAP_ANONYMOUS = 1, 2, 8, 0x20  # mmap(2); droppable: Linux 6.11
MAP_GROWSDOWN, MAP_NORESERVE, MAP_FIXED_NOREPLACE = 0x100, 0x4000, 0x100000
MREMAP_MOVE = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED
MADV_DONTNEED = 4  # madvise(2)
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103  # Linux 6.13
MFD_CLOEXEC, MFD_ALLOW_SEALING = 1, 2
PR_SET_VMA, PR_SET_VMA_ANON_NAME = 0x53564D41, 0
AT_FDCWD = -100

ADVICE = {  # VmFlags code -> madvise(2) that gives it
    "sr": (2, "MADV_SEQUENTIAL"),
    "rr": (1, "MADV_RANDOM"),
    "dc": (10, "MADV_DONTFORK"),
    "mg": (12, "MADV_MERGEABLE"),
    "hg": (14, "MADV_HUGEPAGE"),
    "nh": (15, "MADV_NOHUGEPAGE"),
    "dd": (16, "MADV_DONTDUMP"),
    "wf": (18, "MADV_WIPEONFORK"),
}
_IMPLIED = {"dd", "wf"}  # by MAP_DROPPABLE


BRIDGE = 64 << 20  # bytes


@dataclass
class Bridges:
    """Private anonymous areas with a hole between them, made as if the hole had been cut into one.

    That is how most of them came about, and it shows when the hole is filled again: areas that were cut from one have
    the same anon_vma and merge with what fills it; areas that were written to apart never do. So an area is mapped
    together with the hole to its neighbour, merges with that, and the hole is cut out.

    ``spans``: start of an area -> what to map for it. ``heads``: starts of fresh areas that are written to first, so
    that there is an anon_vma to share; ``kept_heads``: of areas with contents.
    """

    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    heads: set[int] = field(default_factory=set)
    kept_heads: set[int] = field(default_factory=set)

    def plan(self, pieces: Iterable[tuple[VMA, bool]], apart: set[int], avoid: tuple[int, int]) -> None:
        """``pieces``: everything that there will be, lowest first, and whether it is made now (or there already)."""
        row = list(pieces)
        for at in range(1, len(row)):
            (left, left_made), (right, made) = row[at - 1 : at + 1]
            if not (made or left_made) or not bridgeable(left, right, apart):
                continue
            if left.end < avoid[1] and avoid[0] < right.start:
                continue
            if made and at + 1 < len(row):
                above, above_made = row[at + 1]
                if not above_made and above.start == right.end and rules(above) == rules(right):
                    continue  # it belongs to what is there already, with which it merges
            self._join(left, left_made, right, made)

    def _join(self, left: VMA, left_made: bool, right: VMA, made: bool) -> None:
        if made:
            self.spans[right.start] = (left.end, right.end)
            if left.start not in self.spans:
                (self.heads if left_made else self.kept_heads).add(left.start)
        else:
            low, _ = self.spans.get(left.start, (left.start, left.end))
            self.spans[left.start] = (low, right.start)
            self.heads.discard(left.start)
            self.kept_heads.add(right.start)


def bridgeable(left: VMA, right: VMA, apart: set[int]) -> bool:
    """Whether the two could be what is left of one area."""
    if not (left.anonymous and right.anonymous and 0 < right.start - left.end <= BRIDGE):
        return False
    if left.start in apart or right.start in apart or left.fill_prot != RW or right.fill_prot != RW:
        return False
    if left.flags != right.flags or left.name or right.name or left.policy != right.policy:
        return rules(left) == rules(right) and "gd" not in left.flags.split()
    return "gd" not in left.flags.split()


def rules(vma: VMA) -> tuple[object, ...]:
    """By what it is mapped and filled, besides `VMA.fill_prot`: what differs in this is never one VMA, nor can the
    memory of one serve as the other's."""
    flags = vma.flags.split()
    fixed = tuple(code in flags for code in ("gd", "nr", "dp", "mw"))
    behind = None if vma.backing is None else (vma.backing.key, vma.start - vma.offset)
    name = vma.name if vma.name.startswith("[anon") else ""
    return vma.shared, behind, name, vma.policy, fixed, tuple(advice(vma))


class Mapper:
    """Makes VMAs. ``stage``: free room for what must first be mapped elsewhere. ``memfds``: for each memfd by its key,
    the descriptor number at which it stands in the restoree; ``lenders``: of those that another restoree has made, its
    PID and the number there. ``bridges``: see there."""

    def __init__(
        self,
        program: Program,
        stage: int,
        memfds: Mapping[tuple[int, int], int],
        bridges: Bridges | None = None,
        lenders: Mapping[tuple[int, int], tuple[int, int]] | None = None,
    ) -> None:
        self.program, self.stage, self.memfds = program, stage, memfds
        self.lenders = lenders or {}
        self.bridges = bridges or Bridges()

    def make(self, vmas: Iterable[VMA], apart: set[int]) -> None:
        """``apart``: starts of those that must not merge with their neighbour below."""
        for start in self.bridges.kept_heads:
            self.program.op(OpKind.COPY, start, start, 1, label=f"touch {start:x}")
        files: dict[tuple[tuple[int, int], int, bool], list[VMA]] = {}
        objects: dict[tuple[int, int], list[VMA]] = {}
        segments: dict[tuple[int, bool], list[VMA]] = {}
        for vma in vmas:
            if vma.backing is None:
                self._anonymous(vma, vma.start in apart)
            elif vma.backing.kind == SYSV:
                segments.setdefault((vma.backing.ino, vma.start in apart), []).append(vma)
            elif vma.backing.kind == SHMEM and vma.shared:
                objects.setdefault(vma.backing.key, []).append(vma)
            else:
                # Two that must stay apart are mapped from two open files: nothing else can tell them from one.
                files.setdefault((vma.backing.key, _open_mode(vma), vma.start in apart), []).append(vma)
        for same in objects.values():
            self._shared_anonymous(same)
        for same in segments.values():
            sysv_memory.attach(self.program, same, self.stage, 0, self.dress)
        for (_, mode, again), same in files.items():
            self._from_file(same, mode, again)

    def resize_memfd(self, backing: Backing) -> None:
        """Behind its end nothing can be written, though it is mapped (SIGBUS)."""
        number, label = self.memfds[backing.key], f"new size of memfd {backing.path}"
        self.program.syscall("ftruncate", number, backing.size, label=label)

    def create_memfd(self, backing: Backing) -> None:
        """Its seals come last: `seal_memfd`."""
        name, number = backing.path, self.memfds[backing.key]
        label = f"memfd {name}"
        if (lender := self.lenders.get(backing.key)) is not None:
            there = self.program.syscall("pidfd_open", lender[0], 0, label=f"pid {lender[0]}, which has {label}")
            fd = self.program.syscall("pidfd_getfd", there, lender[1], 0, label=label)
            self.program.syscall("dup3", fd, number, os.O_CLOEXEC, label=label, expect=number)
            for each in (fd, there):
                self.program.syscall("close", each, label=label)
            return
        if backing.kind == COMMON:
            self._create_common(backing, number)
            return
        if backing.node is not None:
            made = named.create(self.program, backing.node, backing.size)
            self.program.syscall("dup3", made, number, os.O_CLOEXEC, label=label, expect=number)
            self.program.syscall("close", made, label=label)
            return
        flags = MFD_CLOEXEC | MFD_ALLOW_SEALING
        fd = self.program.syscall("memfd_create", self.program.string(name), flags, label=label)
        self.program.syscall("ftruncate", fd, backing.size, label=f"size of {label}")
        self.program.syscall("dup3", fd, number, os.O_CLOEXEC, label=label, expect=number)
        self.program.syscall("close", fd, label=label)

    def _create_common(self, backing: Backing, number: int) -> None:
        """Memory like that of MAP_SHARED | MAP_ANONYMOUS, as a descriptor (proc_pid_map_files(5); it takes
        CAP_CHECKPOINT_RESTORE, or CAP_SYS_ADMIN before Linux 5.9)."""
        at, size, label = self.stage, whole_pages(backing.size), f"shared memory {backing.ino} ({backing.size} bytes)"
        flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE
        self.program.syscall("mmap", at, size, RW, flags, -1, 0, label=label, expect=at)
        path = self.program.string(f"/proc/self/map_files/{at:x}-{at + size:x}")
        fd = self.program.syscall("openat", AT_FDCWD, path, os.O_RDWR | os.O_CLOEXEC, 0, label=label)
        self.program.syscall("dup3", fd, number, os.O_CLOEXEC, label=label, expect=number)
        self.program.syscall("close", fd, label=label)
        self.program.syscall("munmap", at, size, label=f"first view of {label}")

    def _anonymous(self, vma: VMA, apart: bool) -> None:
        """A private anonymous area takes its page offset from its address when it is first written to, and keeps it
        when it is moved then. So one that was moved here never merges with a neighbour that was not (copy_vma(),
        mm/vma.c: "If anonymous vma has not yet been faulted, update new pgoff")."""
        flags, label = mapping_flags(vma) | MAP_ANONYMOUS, vma.label
        span = self.bridges.spans.get(vma.start)
        if span is not None and not apart:
            low, high = span
            self.program.syscall("mmap", low, high - low, vma.fill_prot, flags, -1, 0, label=label, expect=low)
            self.dress(replace(vma, start=low, end=high))
            for start, end in ((low, vma.start), (vma.end, high)):
                if start < end:
                    self.program.syscall("munmap", start, end - start, label=f"beside {label}")
            return
        if not apart:
            self.program.syscall(
                "mmap", vma.start, vma.size, vma.fill_prot, flags, -1, 0, label=label, expect=vma.start
            )
            if vma.start in self.bridges.heads or ("ac" in vma.flags and not vma.prot & PROT_WRITE):
                self._touch(vma.start, label)
        else:
            at = self.stage
            self.program.syscall("mmap", at, vma.size, RW, flags, -1, 0, label=label, expect=at)
            self._touch(at, label)
            move = (at, vma.size, vma.size, MREMAP_MOVE, vma.start)
            self.program.syscall("mremap", *move, label=f"{label} in its place", expect=vma.start)
            if vma.fill_prot != RW:
                self.program.syscall("mprotect", vma.start, vma.size, vma.fill_prot, label=f"protection of {label}")
        self.dress(vma)

    def _touch(self, at: int, label: str) -> None:
        """Make the kernel note that it was written to (anon_vma), and leave no page. An area that was never written to
        loses its "ac" when it is made unwritable (mprotect_fixup(), mm/mprotect.c)."""
        self.program.op(OpKind.COPY, at, self.program.string(b""), 1, label=f"touch {label}")
        self.program.syscall("madvise", at, 4096, MADV_DONTNEED, label=f"empty {label}")

    def _shared_anonymous(self, vmas: list[VMA]) -> None:
        """Made whole once; then each VMA is a second view of a part, which is what mremap(2) gives for an old size of
        zero. (A memfd would do, but its name shows.)"""
        backing = vmas[0].backing
        assert backing is not None
        size = _object_size(backing, vmas)
        flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        if "nr" in vmas[0].flags:
            flags |= MAP_NORESERVE
        at, label = self.stage, f"shared memory {backing.ino} ({size} bytes)"
        self.program.syscall("mmap", at, size, RW, flags, -1, 0, label=label, expect=at)
        for vma in vmas:
            view = (at + vma.offset, 0, vma.size, MREMAP_MOVE, vma.start)
            self.program.syscall("mremap", *view, label=vma.label, expect=vma.start)
            if vma.fill_prot != RW:
                self.program.syscall("mprotect", vma.start, vma.size, vma.fill_prot, label=f"protection of {vma.label}")
            self.dress(vma)
        self.program.syscall("munmap", at, size, label=f"first view of {label}")

    def _from_file(self, vmas: list[VMA], mode: int, again: bool) -> None:
        backing = vmas[0].backing
        assert backing is not None
        if backing.kind in (MEMFD, COMMON, NAMED):
            number = self.memfds[backing.key]
            if not again and mode == os.O_RDWR:
                for vma in vmas:
                    self._mmap(vma, vma.fill_prot, mapping_flags(vma), number, vma.offset)
                    self.dress(vma)
                return
            path = f"/proc/self/fd/{number}"
        else:
            path = backing.path
        label = f"{backing.path} to be mapped"
        fd = self.program.syscall("openat", AT_FDCWD, self.program.string(path), mode | os.O_CLOEXEC, 0, label=label)
        for vma in vmas:
            self._mmap(vma, vma.fill_prot, mapping_flags(vma), fd, vma.offset)
            self.dress(vma)
        self.program.syscall("close", fd, label=label)

    def _mmap(self, vma: VMA, prot: int, flags: int, fd: Arg, offset: int) -> None:
        self.program.syscall("mmap", vma.start, vma.size, prot, flags, fd, offset, label=vma.label, expect=vma.start)

    def dress(self, vma: VMA) -> None:
        """What must be known before the contents come: they are placed by these rules."""
        if vma.flags in _PLAIN and not vma.policy and not vma.name:
            return
        if vma.policy:
            mempolicy.bind(self.program, vma.start, vma.size, vma.policy, vma.label)
        if vma.name.startswith("[anon"):
            name = self.program.string(vma.name[vma.name.index(":") + 1 : -1])
            args = (PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma.start, vma.size, name)
            self.program.syscall("prctl", *args, label=f"name of {vma.label}")
        for code in advice(vma):
            value, what = ADVICE[code]
            self.program.syscall("madvise", vma.start, vma.size, value, label=f"{what} of {vma.label}")
        if "gu" in vma.flags and "gu" in vma.flags.split():
            # The mark outlives the guard pages that it is for; where they are is told at the end.
            for value in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
                self.program.syscall("madvise", vma.start, 4096, value, label=f"mark for guard pages in {vma.label}")


def advice(vma: VMA) -> list[str]:
    """Codes of the flags that take an madvise(2)."""
    if vma.flags in _PLAIN:
        return []
    flags = set(vma.flags.split())
    return sorted(flags & ADVICE.keys() - (_IMPLIED if "dp" in flags else set()))


def mapping_flags(vma: VMA) -> int:
    """For mmap(2), but for MAP_ANONYMOUS."""
    if vma.flags in _PLAIN:
        return MAP_FIXED_NOREPLACE | (MAP_SHARED if vma.shared else MAP_PRIVATE)
    flags = vma.flags.split()
    if "dp" in flags:
        return MAP_FIXED_NOREPLACE | MAP_DROPPABLE
    return (
        MAP_FIXED_NOREPLACE
        | (MAP_SHARED if vma.shared else MAP_PRIVATE)
        | (MAP_GROWSDOWN if "gd" in flags else 0)
        | (MAP_NORESERVE if "nr" in flags else 0)
    )


_PLAIN = frozenset({"ac me mr mw rd wr", "me mr mw rd", "ex me mr mw rd", "ac me mr mw rd", "me mr mw", "ac me mr mw"})


def droppable(vma: VMA) -> bool:
    """Memory that the kernel may empty at any time (MAP_DROPPABLE): that of getrandom(2) in the vDSO, mostly."""
    return "dp" in vma.flags and "dp" in vma.flags.split()


def kept(vma: VMA) -> VMA:
    """The same on a kernel without such memory. It is still not inherited and not in a core dump; and it is as empty as
    if it had been dropped."""
    return replace(vma, flags=" ".join(flag for flag in vma.flags.split() if flag != "dp"))


def probe_droppable(program: Program) -> Callable[[Results], bool]:
    """Two ops: whether the kernel has such memory ("mm: add MAP_DROPPABLE for designating always lazily freeable
    mappings", Linux 6.11; EINVAL before)."""
    label = "droppable memory"
    slot = program.syscall("mmap", 0, 4096, RW, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0, label=label, ignore=True)
    program.syscall("munmap", slot, 4096, label=label, ignore=True)
    return lambda results: results.of(slot) >= 0


def _open_mode(vma: VMA) -> int:
    """A shared mapping may be made writable later ("mw") only if its file was open for writing."""
    assert vma.backing is not None
    if vma.shared or vma.backing.kind in (MEMFD, COMMON, NAMED):
        return os.O_RDWR if "mw" in vma.flags.split() else os.O_RDONLY
    return os.O_RDONLY


def stage_size(vmas: Iterable[VMA], apart: set[int]) -> int:
    """The most room that `Mapper` needs at its stage."""
    size = 0
    objects: dict[tuple[int, int], list[VMA]] = {}
    for vma in vmas:
        if vma.backing is None:
            if vma.start in apart:
                size = max(size, vma.size)
        elif vma.backing.kind == COMMON:
            size = max(size, whole_pages(vma.backing.size))
        elif vma.backing.kind == SYSV:
            size = max(size, sysv_memory.whole(vma))
        elif vma.backing.kind == SHMEM:
            objects.setdefault(vma.backing.key, []).append(vma)
            size = max(size, _object_size(vma.backing, objects[vma.backing.key]))
    return size


def whole_pages(size: int) -> int:
    """Bytes of the pages that so many bytes take."""
    return -(-size // 4096) * 4096


def _object_size(backing: Backing, vmas: list[VMA]) -> int:
    """Whole pages. Where the source could not tell (see `vma_read`), as far as it is mapped. A view may begin behind
    the end, and then must have something to be a view of."""
    size = backing.size or max(vma.offset + vma.size for vma in vmas)
    return -(-max(size, max(vma.offset + 4096 for vma in vmas)) // 4096) * 4096

"""How System V shared memory gets into an address space: shmat(2) maps a whole segment, and mremap(2) for an old size
of zero makes each view of a part of it, as programs are left with that unmap the rest. The kernel counts every view as
attached (shm_nattch).

While it is filled all of it can be written to; what is attached for reading only (SHM_RDONLY) is attached anew so at
the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from migrate.engine.kinds.vma import SYSV, VMA
from migrate.engine.memory.layout import free_range
from migrate.engine.program import Program

SHM_RDONLY = 0o10000  # shmat(2)
MREMAP_MOVE = 3  # mremap(2): MREMAP_MAYMOVE | MREMAP_FIXED


def whole(vma: VMA) -> int:
    """Bytes of address space that the segment takes."""
    assert vma.backing is not None
    return -(-vma.backing.size // 4096) * 4096


def attach(program: Program, vmas: Sequence[VMA], stage: int, flags: int, dress: Callable[[VMA], None]) -> None:
    """Views of one segment, which is mapped whole at ``stage`` in between. ``dress``: does the rest for each."""
    backing = vmas[0].backing
    assert backing is not None
    label = f"System V shared memory {backing.ino}"
    program.syscall("shmat", backing.ino, stage, flags, label=label, expect=stage)
    for vma in vmas:
        view = (stage + vma.offset, 0, vma.size, MREMAP_MOVE, vma.start)
        program.syscall("mremap", *view, label=vma.label, expect=vma.start)
        dress(vma)
    program.syscall("shmdt", stage, label=f"first view of {label}")


def read_only(vmas: Iterable[VMA]) -> list[VMA]:
    """Those that are attached so that they can never be written to."""
    return [
        vma
        for vma in vmas
        if vma.backing is not None and vma.backing.kind == SYSV and "mw" not in vma.flags.split()
    ]


def attach_again(
    program: Program, vmas: Sequence[VMA], own: tuple[int, int], dress: Callable[[VMA], None]
) -> None:
    """After the last page: what is for reading only. ``own``: the restorer's memory."""
    found = read_only(vmas)
    if not found:
        return
    stage = free_range([*((vma.start, vma.end) for vma in vmas), own], max(map(whole, found)))
    for vma in found:
        attach(program, [vma], stage, SHM_RDONLY, dress)

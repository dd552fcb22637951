"""Moving the destination's own vDSO to where it is wanted, by mremap(2): the kernel notes where its vDSO goes
(vdso_mremap(), arch/x86/entry/vdso/vma.c).

Not by arch_prctl(ARCH_MAP_VDSO_64), for there is no case that it is needed in. It maps no second one (map_vdso_once():
EEXIST), so the restorer's own would have to be unmapped first; and whoever may not move that, because the kernel seals
its mappings (CONFIG_MSEAL_SYSTEM_MAPPINGS, Linux 6.16), may not unmap it either. A kernel that was told to give none
(vdso=0) would map one all the same; but what its owner has switched off stays off, and the task gets stubs.
"""

from __future__ import annotations

from migrate.engine.program import Program
from migrate.engine.vdso.image import Area

# arch_prctl(2): "x86/arch_prctl/vdso: Add ARCH_MAP_VDSO_*", Linux 4.9
_ARCH_MAP_VDSO_32, _ARCH_MAP_VDSO_64 = 0x2002, 0x2003
_MREMAP_MOVE = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED


def park_ops(program: Program, found: tuple[Area, ...], start: int, end: int) -> tuple[Area, ...]:
    """Move what the process has to free room at ``start``; where everything is then.

    In two steps to its final place, this being the first, because source and target may overlap, and mremap(2)
    refuses that.
    """
    parked = []
    for area in found:
        if start + area.size > end:
            raise ValueError(f"no room to park {area.name}, {area.size} bytes")
        move_op(program, area, start, f"put {area.name} aside")
        parked.append(Area(area.name, start, start + area.size))
        start += area.size
    return tuple(parked)


def place_ops(program: Program, parked: tuple[Area, ...], wanted: tuple[Area, ...]) -> None:
    """Move each to where the task had it, and remove what the task did not have. ValueError: the task's are others."""
    targets = {area.name: area for area in wanted}
    if missing := targets.keys() - {area.name for area in parked}:
        raise ValueError(f"this kernel has no {', '.join(sorted(missing))}")
    for area in parked:
        if area.name in targets and targets[area.name].size != area.size:
            raise ValueError(f"{area.name} has {targets[area.name].size:#x} bytes, and {area.size:#x} on this kernel")
    for area in parked:
        target = targets.get(area.name)
        if target is None:
            program.syscall("munmap", area.start, area.size, label=f"{area.name}, which the task does not have")
        else:
            move_op(program, area, target.start, f"{area.name} to {target.start:x}")


def exchange_ops(program: Program, found: tuple[Area, ...], wanted: tuple[Area, ...], compat: bool) -> None:
    """Have the kernel map the vDSO of the other kind of processes in place of what it has mapped, which must be gone
    first (map_vdso_once(): EEXIST). ``compat``: that of processes of 32 bits. Where the kernel has no such call, of
    CONFIG_CHECKPOINT_RESTORE, the program fails."""
    for area in found:
        program.syscall("munmap", area.start, area.size, label=f"{area.name} of the other kind of processes")
    start = min(area.start for area in wanted)
    call, bits = (_ARCH_MAP_VDSO_32, 32) if compat else (_ARCH_MAP_VDSO_64, 64)
    program.syscall("arch_prctl", call, start, label=f"the vDSO of processes of {bits} bits")


def move_op(program: Program, area: Area, target: int, label: str) -> None:
    """One of them."""
    program.syscall(*("mremap", area.start, area.size, area.size, _MREMAP_MOVE, target), label=label, expect=target)

"""What the source agent tells of a process before anything is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.engine.cpu import Cpu
from migrate.engine.kin import Kin
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.kinds.sysv import Ipc, Segment
from migrate.engine.kinds.vma import VMA
from migrate.engine.surroundings import Surroundings
from migrate.engine.vdso import VDSO
from migrate.errors import Problem


@dataclass(frozen=True)
class Preview:
    """A process as it looks from outside while it runs, with all the reasons why it cannot be moved.

    ``pid`` and ``tids`` as the process itself numbers them; ``streams``: standard streams that lead outside and write;
    ``descriptors``: numbers in use; ``limits`` and ``status``: texts of these files of /proc; ``resident``: bytes;
    ``clock_offsets``: of its time namespace; ``kin``: what it is to the others that move with it; ``surroundings``:
    what it is in; ``ipc``: of the first, what all of them have.
    """

    pid: int
    comm: str
    tids: tuple[int, ...]
    problems: tuple[Problem, ...]
    vmas: tuple[VMA, ...]
    needs: tuple[FileNeed, ...]
    streams: tuple[int, ...]
    descriptors: tuple[int, ...]
    limits: str
    status: bytes
    resident: int
    cpu: Cpu
    vdso: VDSO
    compat: bool  # it is of 32 bits
    clock_offsets: tuple[int, int]
    kin: Kin
    surroundings: Surroundings
    ipc: Ipc = Ipc()


@dataclass(frozen=True)
class Layout:
    """The address space at a look. ``fill``: starts of VMAs that were not expected to have contents of their own;
    ``inherited``: at its first look, what the restoree is to keep of its parent's memory (`kinds.heritage`);
    ``segments``: what must be there to be attached to."""

    vmas: tuple[VMA, ...]
    fill: tuple[int, ...]
    inherited: tuple[tuple[int, int], ...] = ()
    segments: tuple[Segment, ...] = ()

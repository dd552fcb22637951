"""The image of a process: everything but the contents of its pages, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.engine.kin import Kin
from migrate.engine.kinds.descriptors import DescriptorTable
from migrate.engine.kinds.fs import FsState
from migrate.engine.kinds.mm import MM
from migrate.engine.kinds.sysv import Ipc, Undo
from migrate.engine.kinds.task import Process, Thread
from migrate.engine.kinds.vma import VMA


@dataclass(frozen=True)
class ThreadImage:
    """A thread: its own number, user_regs_struct as it is to go on at the destination, XSAVE area, and the rest.
    ``segments``: struct user_desc of those that a thread of 32 bits has."""

    tid: int
    registers: bytes
    xsave: bytes
    state: Thread
    segments: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class ProcessImage:
    """``threads``: the main one first. ``guards``: (start, end) of guard pages. ``ipc``: what the first of the
    processes has for all of them; ``undos``: of this one."""

    process: Process
    threads: tuple[ThreadImage, ...]
    vmas: tuple[VMA, ...]
    guards: tuple[tuple[int, int], ...]
    mm: MM
    descriptors: DescriptorTable
    fs: FsState
    kin: Kin
    ipc: Ipc = Ipc()
    undos: tuple[Undo, ...] = ()

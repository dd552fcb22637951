"""The image of a process on its way from the source agent to the coordinator.

It travels in parts, each encoded for itself. Both ends remember the last ones, so that a part which has not changed
since, mostly since the rehearsal, is neither encoded nor decoded again. The registers of the threads change always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from migrate.engine.image.codec import decode, encode
from migrate.engine.kin import Kin
from migrate.engine.kinds.descriptors import DescriptorTable
from migrate.engine.kinds.fs import FsState
from migrate.engine.kinds.mm import MM
from migrate.engine.kinds.sysv import Ipc, Undo
from migrate.engine.kinds.task import Process, Thread
from migrate.engine.kinds.vma import VMA
from migrate.engine.process import ProcessImage, ThreadImage
from migrate.errors import ImageError


@dataclass(frozen=True)
class _Threads:
    states: tuple[Thread, ...]
    segments: tuple[tuple[bytes, ...], ...]  # of each


@dataclass(frozen=True)
class _AddressSpace:
    vmas: tuple[VMA, ...]
    guards: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Files:
    descriptors: DescriptorTable
    fs: FsState


@dataclass(frozen=True)
class _Ipc:
    ipc: Ipc
    undos: tuple[Undo, ...]


_PARTS: tuple[type, ...] = (Process, _Threads, _AddressSpace, MM, _Files, Kin, _Ipc)


@dataclass(frozen=True)
class _Envelope:
    """``registers`` and ``xsaves``: of each thread."""

    parts: tuple[bytes, ...]
    registers: tuple[bytes, ...]
    xsaves: tuple[bytes, ...]


class Writer:
    """Turns images into bytes."""

    def __init__(self) -> None:
        self._kept: dict[type, tuple[object, bytes]] = {}

    def write(self, image: ProcessImage) -> bytes:
        """Raises ImageError as of `codec.encode`."""
        parts = (
            image.process,
            _Threads(
                tuple(thread.state for thread in image.threads), tuple(thread.segments for thread in image.threads)
            ),
            _AddressSpace(image.vmas, image.guards),
            image.mm,
            _Files(image.descriptors, image.fs),
            image.kin,
            _Ipc(image.ipc, image.undos),
        )
        registers = tuple(thread.registers for thread in image.threads)
        xsaves = tuple(thread.xsave for thread in image.threads)
        return encode(_Envelope(tuple(map(self._part, parts)), registers, xsaves))

    def _part(self, part: object) -> bytes:
        kept = self._kept.get(type(part))
        if kept is None or kept[0] != part:
            kept = self._kept[type(part)] = part, encode(part)
        return kept[1]


class Reader:
    """Turns the bytes of a `Writer` back into images. A part that has not changed is the very same object again."""

    def __init__(self) -> None:
        self._kept: dict[type, tuple[bytes, Any]] = {}

    def read(self, blob: bytes) -> ProcessImage:
        """Raises ImageError, as of `codec.decode`."""
        envelope = decode(_Envelope, blob)
        if len(envelope.parts) != len(_PARTS):
            raise ImageError(f"image.parts: expected {len(_PARTS)}, found {len(envelope.parts)}")
        process, threads, space, mm, files, kin, ipc = map(self._part, _PARTS, envelope.parts)
        if len({*map(len, (threads.states, threads.segments, envelope.registers, envelope.xsaves))}) > 1:
            raise ImageError(f"image.registers: expected those of {len(threads.states)} threads")
        threads = zip(threads.states, envelope.registers, envelope.xsaves, threads.segments, strict=True)
        return ProcessImage(
            process=process,
            threads=tuple(
                ThreadImage(state.identity.tid, registers, xsave, state, its)
                for state, registers, xsave, its in threads
            ),
            vmas=space.vmas,
            guards=space.guards,
            mm=mm,
            descriptors=files.descriptors,
            fs=files.fs,
            kin=kin,
            ipc=ipc.ipc,
            undos=ipc.undos,
        )

    def _part(self, cls: type, blob: bytes) -> Any:
        kept = self._kept.get(cls)
        if kept is None or kept[0] != blob:
            kept = self._kept[cls] = blob, decode(cls, blob)
        return kept[1]

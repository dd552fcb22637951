"""Memory that the coordinator shares with a local source agent, so that pages need not pass through a socket.

A socket costs two copies and the page faults of a fresh buffer for each; here the agent puts the contents of a page
frame into a slot, and the coordinator encrypts them from there. The frame itself (RING in `frames`) says which slot.
Free slots are passed back as single bytes through a pipe: reading one blocks the agent until the connection has caught
up, and the end of the pipe tells it that the coordinator is gone.

An agent that runs under sudo(8) is not given the descriptors; then the frames carry the contents themselves.
"""

from __future__ import annotations

import mmap
import os
import struct
from types import TracebackType
from typing import Self

from migrate.transport import frames
from migrate.transport.frames import Buffer, Frame

SLOT = 1 << 20  # bytes: the contents of one page frame
SLOTS = 8
_WHERE = struct.Struct("<II")  # slot, length: before the meta of a RING frame


class Ring:
    """Both ends: the coordinator makes it, the agent attaches to it by the numbers in ``arguments``."""

    def __init__(self, memory: int, free: int, release: int = -1) -> None:
        self._memory, self._free, self._release = memory, free, release
        self._map = mmap.mmap(memory, SLOT * SLOTS)
        self._view = memoryview(self._map)

    @classmethod
    def create(cls) -> Ring:
        """With all slots free."""
        memory = os.memfd_create("migrate-pages", os.MFD_CLOEXEC)
        os.ftruncate(memory, SLOT * SLOTS)
        free, release = os.pipe2(os.O_CLOEXEC)
        os.write(release, bytes(range(SLOTS)))
        return cls(memory, free, release)

    @property
    def inherited(self) -> tuple[int, int]:
        """Descriptors that the agent needs."""
        return self._memory, self._free

    @property
    def argument(self) -> str:
        """What `attach` takes."""
        return f"{self._memory},{self._free}"

    @classmethod
    def attach(cls, argument: str) -> Ring | None:
        """The agent's end; None when the descriptors did not come along."""
        memory, free = map(int, argument.split(","))
        try:
            if os.fstat(memory).st_size == SLOT * SLOTS and os.readlink(f"/proc/self/fd/{free}").startswith("pipe:"):
                return cls(memory, free)
        except OSError:
            pass  # closed on the way here; the sockets do
        return None

    def put(self, contents: memoryview | bytes | bytearray) -> int | None:
        """Copy the contents into a free slot, waiting for one; its number, or None when the coordinator is gone."""
        slot = os.read(self._free, 1)
        if not slot:
            return None
        start = slot[0] * SLOT
        self._view[start : start + len(contents)] = contents
        return slot[0]

    def slot(self, number: int, length: int) -> memoryview:
        """The contents in a slot. Raises ValueError for what cannot be."""
        if not (0 <= number < SLOTS and 0 <= length <= SLOT):
            raise ValueError(f"no slot {number} with {length} bytes")
        return self._view[number * SLOT : number * SLOT + length]

    def free(self, number: int) -> None:
        """The slot may be used again."""
        if self._release >= 0:
            os.write(self._release, bytes((number,)))

    def hang_up(self) -> None:
        """No slot will be freed any more: an agent that waits for one ends."""
        if self._release >= 0:
            os.close(self._release)
            self._release = -1

    def close(self) -> None:
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            pass  # the traceback of an error still knows a slot; the memory goes with it
        for fd in (self._memory, self._free, self._release):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unring(frame: Frame, ring: Ring) -> tuple[bytes, Buffer, int | None]:
    """Meta and contents of a frame of pages, and the slot that is to be freed when these have been used."""
    if frame.kind != frames.RING:
        return frame.meta, frame.blob, None
    slot, size = _WHERE.unpack_from(frame.meta)
    return frame.meta[_WHERE.size :], ring.slot(slot, size), slot

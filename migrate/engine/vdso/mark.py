"""The mark: what a proxied process carries in its own memory, so that the next dump knows which vDSO is whose.

It stands at the start of an area of ours behind the rt-vdso, with the pristine image, and ahead of the stubs. Not in
the header of the rt-vdso: those pages are the kernel's, a destination without a vDSO has none, and the image would not
fit. The proxy itself shows the task's ELF header as it always was.

The layout is fixed, for the process may next be moved by another version of this program.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from migrate.engine.vdso.image import NAMES, VDSO, Area
from migrate.errors import Failed

MAGIC = b"migrate vDSO\0\r\n\x1a"
VERSION = 1
_HEAD = struct.Struct("<16sIII")  # magic, version, bytes of the body, CRC-32 of the body
# address of the mark, bytes of its area, CRC-32 of the proxy; how many areas, rt areas, droppable ones; bytes of image
_BODY = struct.Struct("<QQIIIII")
_AREA = struct.Struct("<QQQ")  # index in NAMES, start, end
_HIGHEST = 1 << 47
MAX_SIZE = 64 << 10  # bytes; the images of today have 8 KiB at most


class StrangeMark(Failed):
    """A mark that cannot be read: of another version, or written over."""


@dataclass(frozen=True)
class Mark:
    """``address``, ``size``: the area that begins with it. ``task``: the task's own vDSO, pristine, where the task has
    it. ``rt``: the pair that the proxy leads to; empty on a kernel without a vDSO. ``checksum``: CRC-32 of the proxy
    over the length of the image, as it was written; ``droppable``: memory that was MAP_DROPPABLE on kernels that know
    that kind, and is of a plainer kind here."""

    address: int
    size: int
    task: VDSO
    rt: tuple[Area, ...]
    checksum: int
    droppable: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        """The bytes at ``address``."""
        counts = len(self.task.areas), len(self.rt), len(self.droppable)
        body = _BODY.pack(self.address, self.size, self.checksum, *counts, len(self.task.image))
        for area in (*self.task.areas, *self.rt):
            body += _AREA.pack(NAMES.index(area.name), area.start, area.end)
        for start, end in self.droppable:
            body += _AREA.pack(0, start, end)
        body += self.task.image
        return _HEAD.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body

    @classmethod
    def decode(cls, content: bytes) -> Mark:
        """From what stands at its address. Nothing of it is trusted. Raises StrangeMark, NoVDSO."""
        magic, version, length, checksum = _HEAD.unpack_from(content)
        if magic != MAGIC or version != VERSION:
            raise StrangeMark(f"the proxy of its vDSO is of version {version}, and we know {VERSION}")
        body = content[_HEAD.size : _HEAD.size + length]
        if len(body) != length or zlib.crc32(body) != checksum or length < _BODY.size:
            raise StrangeMark("the mark of its vDSO's proxy has been written over")
        address, size, proxy, ours, rt, droppable, image_size = _BODY.unpack_from(body)
        if _BODY.size + (ours + rt + droppable) * _AREA.size + image_size != length:
            raise StrangeMark("the mark of its vDSO's proxy contradicts itself")
        found = []
        for index in range(ours + rt + droppable):
            number, start, end = _AREA.unpack_from(body, _BODY.size + index * _AREA.size)
            if number >= len(NAMES) or not start < end <= _HIGHEST or (start | end) & 4095:
                raise StrangeMark("the mark of its vDSO's proxy tells of impossible areas")
            found.append(Area(NAMES[number], start, end))
        image = body[length - image_size :]
        plain = tuple((area.start, area.end) for area in found[ours + rt :])
        return cls(address, size, VDSO.read(tuple(found[:ours]), image), tuple(found[ours : ours + rt]), proxy, plain)

    def matches(self, proxy: bytes) -> bool:
        """Whether the proxy is as it was written. ``proxy``: its content; what lies behind the image is nobody's."""
        return zlib.crc32(proxy[: len(self.task.image)]) == self.checksum


def size_of(head: bytes) -> int:
    """Bytes of a mark that begins like this; 0: it is none. ``head``: `HEAD_SIZE` bytes."""
    magic, _, length, _ = _HEAD.unpack(head)
    return _HEAD.size + min(length, MAX_SIZE) if magic == MAGIC else 0


HEAD_SIZE = _HEAD.size

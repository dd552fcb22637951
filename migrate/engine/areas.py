"""VMAs as the trackers of dirty pages see them."""

from __future__ import annotations

import os

from migrate.engine.kinds.vma import PROT_READ, SHMEM, VMA
from migrate.engine.memory.area import Area, Content


def area_of(vma: VMA) -> Area:
    """What the trackers want to know of a VMA; also of one without contents that travel, so that they keep off it."""
    backing, readable = vma.backing, bool(vma.prot & PROT_READ)
    if not vma.travels or "dp" in vma.flags.split():
        return Area(vma.start, vma.end, Content.NOTHING, readable)
    if not vma.shared or backing is None:
        content = Content.ANONYMOUS if backing is None else Content.PRIVATE_FILE
        return Area(vma.start, vma.end, content, readable)
    key = (os.major(backing.dev), os.minor(backing.dev), backing.ino)
    return Area(vma.start, vma.end, Content.SHARED, readable, key, vma.offset, backing.kind == SHMEM)

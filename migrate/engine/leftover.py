"""Names of shared memory that are left here when those who had it have moved."""

from __future__ import annotations

import os
from collections.abc import Iterable

from migrate.engine.kinds.named import NamedMemory
from migrate.engine.kinds.opened import Key
from migrate.engine.kinds.outside import users
from migrate.engine.kinds.vma import memfds
from migrate.engine.process import ProcessImage


def names(images: Iterable[ProcessImage]) -> dict[str, Key]:
    """Of the shared memory that these processes have mapped or open, with what they lead to."""
    found: dict[str, Key] = {}
    for image in images:
        found |= {each.node.path: each.key for each in memfds(image.vmas) if each.node is not None}
        found |= {each.node.path: each.key for each in image.descriptors.objects if isinstance(each, NamedMemory)}
    return found


def remove(names: dict[str, Key]) -> None:
    """Those that still lead to it, unless somebody else has come to use it: then it is theirs. On the same machine the
    name may lead to the new one by now. OSError."""
    used = users(names) if names else set()
    for path, key in names.items():
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            continue
        if (there.st_dev, there.st_ino) == key and key not in used:
            os.unlink(path)

"""A directory as the target of a dump."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from migrate.checkpoint.directory import Opened, Place, new_place, opened
from migrate.checkpoint.format import IMAGE, PAGE, PAGES, SUMS, Checkpoint, File, Manifest, extents, pack
from migrate.checkpoint.pages import Ancestor, Buffer, PageMap, PageWriter
from migrate.engine.image.codec import encode
from migrate.engine.kinds.mapping import droppable
from migrate.engine.kinds.vma import VMA


class DirectoryTarget:
    """Pages come in rounds, and at the end the image with their places."""

    rounds = True
    abandon = False

    def __init__(self, place: Place, before: Opened | None) -> None:
        """``before``: the checkpoint that it is on top of."""
        self.path = place.path
        self._place, self._before = place, before
        self._ancestors = _names(before)
        self._writer = PageWriter(place.create(PAGES), _ancestor(before))
        self._order: list[int] = []
        self._checkpoint: Checkpoint | None = None
        self._size = 0

    def follow(self, pids: Mapping[int, int], renewed: Sequence[int]) -> None:
        self._order = list(pids)
        self._writer.follow(pids, renewed)

    def take(self, id: int, runs: Sequence[tuple[int, int, int]], contents: Buffer) -> None:
        self._writer.take(id, runs, contents)

    def keep(self, id: int, vmas: Sequence[VMA]) -> None:
        holding = (vma for vma in vmas if vma.travels and not droppable(vma))
        self._writer.maps[id].keep([(vma.start, vma.end) for vma in holding])

    def begin(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def finish(self) -> None:
        assert self._checkpoint is not None
        places = [list(self._writer.maps[id].extents()) for id in self._order]
        processes = tuple(
            replace(process, extents=pack(its))
            for process, its in zip(self._checkpoint.processes, places, strict=True)
        )
        checkpoint = replace(self._checkpoint, processes=processes, ancestors=tuple(self._ancestors))
        files = {
            IMAGE: self._place.add(IMAGE, encode(checkpoint)),
            PAGES: File(self._writer.pages * PAGE, None),
            SUMS: self._place.add(SUMS, self._writer.sums()),
        }
        who = checkpoint.processes[0].preview
        self.pages = sum(extent.pages for its in places for extent in its)
        self._size = sum(file.size for file in files.values())
        self._place.finish(Manifest(checkpoint.taken, who.pid, who.comm, files, self._ancestors))

    pages = 0

    @property
    def bytes(self) -> int:
        return self._size


def _names(before: Opened | None) -> dict[str, str]:
    """The checkpoints whose pages may be used, by name, with the digests of their manifests: the one before, and those
    that it uses itself."""
    if before is None:
        return {}
    return {os.path.basename(before.path): before.manifest_digest, **before.manifest.ancestors}


def _ancestor(before: Opened | None) -> Ancestor | None:
    """Its pages. What is file 0 there is the first ancestor of who comes next, and so on."""
    if before is None:
        return None
    known: dict[int, PageMap] = {}
    for index, saved in enumerate(before.checkpoint.processes):
        its = known[saved.image.process.pid] = PageMap()
        for extent in extents(saved, index, before.sizes):
            its.set(extent.address, extent.pages, extent.file + 1, extent.at)
    return Ancestor({number + 1: file.fd for number, file in enumerate(before.files)}, known)


@contextmanager
def directory_target(path: str, series: bool) -> Iterator[DirectoryTarget]:
    """See `new_place`; what the ``series`` has is built upon."""
    with ExitStack() as stack:
        place, name = stack.enter_context(new_place(path, series))
        before = None
        if name is not None:
            before = stack.enter_context(opened(os.path.join(os.path.dirname(place.path), name)))
        yield DirectoryTarget(place, before)


def age(taken: float) -> str:
    """When it was taken, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(taken))

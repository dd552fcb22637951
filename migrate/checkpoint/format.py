"""What a checkpoint holds, as data, and the manifest that makes it whole."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from migrate.engine.image.codec import MAX_SIZE, decode
from migrate.engine.preview import Preview
from migrate.engine.process import ProcessImage
from migrate.errors import ImageError

FORMAT, VERSION = "migrate-checkpoint", 3
MANIFEST, IMAGE, PAGES, SUMS = "manifest", "image", "pages", "sums"
FILES = (IMAGE, PAGES, SUMS)  # what a manifest vouches for
PAGE = 4096
BLOCK = 1 << 20  # bytes of pages that have one checksum
MAX_MANIFEST = 4 << 20
_EXTENT = struct.Struct("<QIIQ")
_LAST = 1 << 48  # no address and no offset is as large
_SIBLING = re.compile(r"\d{4,9}", re.ASCII)


class Extent(NamedTuple):
    """``pages`` pages of the process from ``address`` on, and where they are: from page ``at`` on of the pages of this
    checkpoint (``file`` 0) or of its ``file``-th ancestor."""

    address: int
    pages: int
    file: int
    at: int


@dataclass(frozen=True)
class Host:
    """Where it was taken. ``monotonic`` and ``boottime``: its clocks at that moment, without any time namespace; ns."""

    node: str
    release: str
    boot_id: str
    monotonic: int
    boottime: int


@dataclass(frozen=True)
class Saved:
    """One process. ``fill``: starts of areas that were not expected to have pages of their own, and may have some.
    ``extents``: see `extents`, lowest address first; in a stream they are with the pages instead."""

    preview: Preview
    image: ProcessImage
    fill: tuple[int, ...]
    extents: bytes


@dataclass(frozen=True)
class Checkpoint:
    """The file ``image``. ``processes``: parents first. ``taken``: seconds since 1970. ``digests``: BLAKE2b of mapped
    files, by path. ``ancestors``: checkpoints beside this one that have some of its pages."""

    taken: float
    host: Host
    digests: Mapping[str, str]
    ancestors: tuple[str, ...]
    processes: tuple[Saved, ...]


def pack(extents: list[Extent]) -> bytes:
    """As they are in a `Saved`."""
    return b"".join(_EXTENT.pack(*extent) for extent in extents)


def extents(saved: Saved, index: int, sizes: tuple[int, ...]) -> Iterator[Extent]:
    """Those of the ``index``-th process. ``sizes``: of the pages of the checkpoint and its ancestors, in pages.
    ImageError names what cannot be."""
    where = f"image.processes[{index}].extents"
    if len(saved.extents) % _EXTENT.size:
        raise ImageError(f"{where}: {len(saved.extents)} bytes are no number of extents of {_EXTENT.size} bytes")
    areas = iter([(vma.start, vma.end) for vma in saved.image.vmas if vma.travels])
    low = high = behind = 0
    for number, fields in enumerate(_EXTENT.iter_unpack(saved.extents)):
        extent, here = Extent(*fields), f"{where}[{number}]"
        start, end = extent.address, extent.address + extent.pages * PAGE
        if not extent.pages or start % PAGE or start < behind or end > _LAST:
            raise ImageError(f"{here}: {extent.pages} pages at {start:#x} cannot come here")
        if extent.file >= len(sizes) or extent.at + extent.pages > sizes[extent.file]:
            raise ImageError(f"{here}: page {extent.at} and on of file {extent.file} are not there")
        at = start
        while at < end:  # one may lie in several areas that touch
            while high <= at:
                low, high = next(areas, (0, 0))
                if not high:
                    raise ImageError(f"{here}: no memory of the process is at {at:#x}")
            if at < low:
                raise ImageError(f"{here}: no memory of the process is at {at:#x}")
            at = min(end, high)
        behind = end
        yield extent


# The manifest


@dataclass(frozen=True)
class File:
    """``size`` in bytes. ``digest``: BLAKE2b of 128 bits; of the pages None, for which ``sums`` stand."""

    size: int
    digest: str | None


@dataclass(frozen=True)
class Manifest:
    """``ancestors``: the digest of the manifest of each, by its name."""

    taken: float
    pid: int
    comm: str
    files: Mapping[str, File]
    ancestors: Mapping[str, str]

    def text(self) -> bytes:
        """A line of JSON, and a line with its digest."""
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "taken": self.taken,
            "pid": self.pid,
            "comm": self.comm,
            "files": {name: {"size": file.size, "digest": file.digest} for name, file in self.files.items()},
            "ancestors": dict(self.ancestors),
        }
        line = json.dumps(fields).encode() + b"\n"
        return line + digest(line).encode() + b"\n"


def digest(content: bytes | bytearray | memoryview) -> str:
    """BLAKE2b of 128 bits, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def parse_manifest(raw: bytes, where: str = "manifest") -> Manifest:
    """ImageError names the field."""
    line, newline, rest = raw.partition(b"\n")
    if not newline or len(rest) != 33 or rest[-1:] != b"\n":
        raise ImageError(f"{where}: cut off, or not a manifest")
    if digest(line + newline).encode() != rest[:-1]:
        raise ImageError(f"{where}: its checksum is wrong")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where}: not JSON: {error}") from None
    reader = _Fields(fields, where)
    if reader.take("format", str) != FORMAT:
        raise ImageError(f"{where}.format: {fields['format']!r:.80} is not {FORMAT!r}")
    if reader.take("version", int) != VERSION:
        raise ImageError(f"{where}.version: {fields['version']}, and only {VERSION} is understood here")
    files = _Fields(reader.take("files", dict), f"{where}.files")
    found = {}
    for name in FILES:
        file = _Fields(files.take(name, dict), f"{where}.files.{name}")
        size = file.take("size", int)
        if size < 0:
            raise ImageError(f"{where}.files.{name}.size: {size} bytes")
        found[name] = File(size, None if name == PAGES else file.take("digest", str))
    _check_sizes(found, f"{where}.files")
    ancestors = _Fields(reader.take("ancestors", dict), f"{where}.ancestors")
    for name in ancestors.names:
        if not _SIBLING.fullmatch(name):
            raise ImageError(f"{where}.ancestors: {name!r:.80} is not the name of a checkpoint")
    return Manifest(
        float(reader.take("taken", float)),
        reader.take("pid", int),
        reader.take("comm", str),
        found,
        {name: ancestors.take(name, str) for name in ancestors.names},
    )


def _check_sizes(files: Mapping[str, File], where: str) -> None:
    if files[PAGES].size % PAGE:
        raise ImageError(f"{where}.{PAGES}.size: {files[PAGES].size} bytes are no number of pages")
    wanted = 4 * -(-files[PAGES].size // BLOCK)
    if files[SUMS].size != wanted:
        raise ImageError(f"{where}.{SUMS}.size: {files[SUMS].size} bytes, where {wanted} belong")
    if files[IMAGE].size > MAX_SIZE:
        raise ImageError(f"{where}.{IMAGE}.size: {files[IMAGE].size} bytes, at most {MAX_SIZE} are allowed")


class _Fields:
    """Of a JSON object, checked one by one."""

    def __init__(self, fields: Any, where: str) -> None:
        if type(fields) is not dict:
            raise ImageError(f"{where}: expected an object, found {type(fields).__name__}")
        self._fields, self._where = fields, where

    @property
    def names(self) -> list[str]:
        return list(self._fields)

    def take(self, name: str, kind: type) -> Any:
        if name not in self._fields:
            raise ImageError(f"{self._where}.{name}: is missing")
        value = self._fields[name]
        if type(value) is not kind:
            raise ImageError(f"{self._where}.{name}: expected {kind.__name__}, found {type(value).__name__}")
        return value


def decode_checkpoint(raw: bytes) -> Checkpoint:
    """The file ``image``. ImageError names the field."""
    checkpoint = decode(Checkpoint, raw)
    if not checkpoint.processes:
        raise ImageError("image.processes: none")
    _check_tree(checkpoint.processes)
    for name in checkpoint.ancestors:
        if not _SIBLING.fullmatch(name):
            raise ImageError(f"image.ancestors: {name!r:.80} is not the name of a checkpoint")
    return checkpoint


def _check_tree(processes: tuple[Saved, ...]) -> None:
    """Parents first, and each a process of its own."""
    seen: set[int] = set()
    for position, saved in enumerate(processes):
        where, pid, its = f"image.processes[{position}]", saved.image.process.pid, saved.image.kin
        if saved.preview.pid != pid or its.pid != pid or pid in seen:
            raise ImageError(f"{where}.image.process.pid: {pid} is another one, or in it twice")
        seen.add(pid)
        if its.parent >= position or (its.parent < 0) != (position == 0):
            raise ImageError(f"{where}.image.kin.parent: {its.parent} does not come before it")

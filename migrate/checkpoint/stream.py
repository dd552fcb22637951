"""A checkpoint as a stream: the same image, then the pages with their addresses, then a record that ends it.

    "migrate-checkpoint 3\\n", then records: tag (4 bytes) · CRC-32C of the payload u32 · its length u64 · payload

    IMAG  the file ``image``
    PAGE  position of the process u32, length of the runs u32, the runs as in a PAGES frame (migrate.transport.frames),
          contents of the pages
    DONE  JSON: how many pages and records there were, and a digest of the heads of all records

Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from migrate.checkpoint.format import Checkpoint, decode_checkpoint
from migrate.checkpoint.jobs import STREAM
from migrate.destination import RESTOREE, Destination
from migrate.engine.image.codec import MAX_SIZE, encode
from migrate.engine.kinds.vma import VMA
from migrate.errors import Failed, ImageError
from migrate.pie.checksum import crc32c
from migrate.progress import Display
from migrate.transport import frames
from migrate.transport.frames import Buffer, Run

MAGIC = b"migrate-checkpoint 3\n"
IMAGE, PAGES, DONE = b"IMAG", b"PAGE", b"DONE"
WHERE = "standard input"
_HEAD = struct.Struct("<4sIQ")
_WHOSE = struct.Struct("<II")  # position of the process, length of the runs
_LIMITS = {IMAGE: MAX_SIZE, PAGES: frames.MAX_PAGES_META + frames.MAX_PAGES_BLOB + _WHOSE.size, DONE: 1 << 16}


class StreamTarget:
    """Writes to a descriptor, which may block for as long as whoever reads takes."""

    rounds = False  # the image comes first, and it is that of the process when it was stopped
    abandon = True
    path = STREAM

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._checkpoint: Checkpoint | None = None
        self._begun = False
        self._positions: dict[int, int] = {}  # by id
        self._heads = hashlib.blake2b(digest_size=16)
        self._records = 0
        self.pages = self.bytes = 0

    def follow(self, pids: Mapping[int, int], renewed: Sequence[int]) -> None:
        """Nothing has been written yet."""
        self._positions = {id: position for position, id in enumerate(pids)}

    def begin(self, checkpoint: Checkpoint) -> None:
        """Written as soon as there is a page: until then it may be another one."""
        self._checkpoint = checkpoint

    def keep(self, id: int, vmas: Sequence[VMA]) -> None:
        """All that comes is of the image."""

    def take(self, id: int, runs: Sequence[Run], contents: Buffer) -> None:
        wanted = [run for run in runs if run.what == frames.CONTENTS]  # there is nothing yet that could be erased
        if not wanted:
            return
        self._begin()
        meta = frames.pages_meta(wanted)
        self._write(PAGES, _WHOSE.pack(self._positions[id], len(meta)) + meta, contents)
        self.pages += sum(run.pages for run in wanted)

    def finish(self) -> None:
        self._begin()
        told = {"pages": self.pages, "records": self._records, "heads": self._heads.hexdigest()}
        self._write(DONE, json.dumps(told).encode())

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            assert self._checkpoint is not None
            frames.write_all(self._fd, MAGIC)
            self.bytes += len(MAGIC)
            self._write(IMAGE, encode(self._checkpoint))

    def _write(self, tag: bytes, *payload: Buffer) -> None:
        crc = 0
        for part in payload:
            crc = crc32c(part, crc)
        head = _HEAD.pack(tag, crc, sum(map(len, payload)))
        self._heads.update(head)
        self._records += 1
        frames.write_all(self._fd, head, *payload)
        self.bytes += len(head) + sum(map(len, payload))


class StreamReader:
    """Records from a blocking descriptor. ImageError says what is wrong with them, and where."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._heads = hashlib.blake2b(digest_size=16)
        self._records = 0
        self.bytes = 0

    def checkpoint(self) -> Checkpoint:
        """The first record."""
        found = bytes(self._exactly(len(MAGIC), "its head"))
        if found != MAGIC:
            raise ImageError(f"{WHERE}: not a checkpoint of this version: it begins with {found!r}")
        tag, payload = self.next()
        if tag != IMAGE:
            raise ImageError(f"{WHERE}: record 0 is {tag!r}, not {IMAGE!r}")
        try:
            return decode_checkpoint(bytes(payload))
        except ImageError as error:
            raise ImageError(f"{WHERE}: {error}") from None

    def next(self) -> tuple[bytes, Buffer]:
        """Tag and payload of the next one."""
        where = f"record {self._records}"
        head = bytes(self._exactly(_HEAD.size, f"the head of {where}"))
        tag, crc, length = _HEAD.unpack(head)
        if tag not in _LIMITS:
            raise ImageError(f"{WHERE}: {where}.tag: {tag!r} is none")
        if length > _LIMITS[tag]:
            raise ImageError(f"{WHERE}: {where}.length: {length} bytes, at most {_LIMITS[tag]} are allowed")
        payload = self._exactly(length, f"the payload of {where}")
        if crc32c(payload) != crc:
            raise ImageError(f"{WHERE}: {where}: its checksum is wrong")
        if tag != DONE:
            self._heads.update(head)
            self._records += 1
        return tag, payload

    def check_end(self, payload: Buffer, pages: int) -> None:
        """Whether the last record fits those before it."""
        try:
            told: Any = json.loads(bytes(payload))
        except (ValueError, RecursionError):
            told = None
        if type(told) is not dict:
            raise ImageError(f"{WHERE}: record {self._records}: not a JSON object")
        wanted = {"pages": pages, "records": self._records, "heads": self._heads.hexdigest()}
        for name, value in wanted.items():
            if told.get(name) != value:
                raise ImageError(f"{WHERE}: record {self._records}.{name}: {told.get(name)!r:.80}, found {value!r}")

    def _exactly(self, length: int, what: str) -> Buffer:
        # Memory for what is here, not for what is promised
        parts: list[bytes] = []
        left = length
        while left:
            part = os.read(self._fd, min(left, 1 << 20))
            if not part:
                raise ImageError(f"{WHERE}: cut off in {what}, {left} bytes short")
            parts.append(part)
            left -= len(part)
        self.bytes += length
        return parts[0] if len(parts) == 1 else b"".join(parts)


Areas = Sequence[tuple[int, int]]  # sorted; where pages may be


def runs_of(payload: Buffer, areas: Sequence[Areas], where: str) -> tuple[int, bytes, list[Run], memoryview]:
    """Position of the process, meta, runs and contents of a PAGE record. ``areas``: of each process. ImageError names
    what cannot be."""
    view = memoryview(payload)
    if len(view) < _WHOSE.size:
        raise ImageError(f"{where}.runs: {len(view)} bytes are no record of pages")
    member, size = _WHOSE.unpack_from(view)
    if member >= len(areas):
        raise ImageError(f"{where}.process: {member}, and there are {len(areas)}")
    meta, contents = bytes(view[_WHOSE.size : _WHOSE.size + size]), view[_WHOSE.size + size :]
    try:
        frames.check_pages(0, meta, len(contents))
        runs = frames.parse_pages(meta)[1]
    except frames.FrameError as error:
        raise ImageError(f"{where}.runs: {error}") from None
    for number, run in enumerate(runs):
        end = run.address + run.pages * frames.PAGE
        inside = _covered(run.address, end, areas[member])
        if run.what != frames.CONTENTS or run.address % frames.PAGE or not run.pages or not inside:
            what = f"{run.pages} pages at {run.address:#x} are none of the process"
            raise ImageError(f"{where}.runs[{number}]: {what}")
    return member, meta, runs, contents


def _covered(start: int, end: int, areas: Areas) -> bool:
    for low, high in areas:
        if low <= start < high:
            if end <= high:
                return True
            start = high
    return False


class StreamPages:
    """The rest of a stream, once."""

    def __init__(self, reader: StreamReader, checkpoint: Checkpoint) -> None:
        self._reader = reader
        self._areas = [
            [(vma.start, vma.end) for vma in saved.image.vmas if vma.travels] for saved in checkpoint.processes
        ]
        self._used = False

    async def fill(self, destination: Destination, display: Display) -> tuple[int, int]:
        """As `migrate.checkpoint.restore.Pages` says."""
        if self._used:
            raise Failed("the stream has been read by now; try again")
        self._used = True
        reader, pages, number, begun = self._reader, 0, 1, time.monotonic()
        while True:
            tag, payload = await trio.to_thread.run_sync(reader.next, abandon_on_cancel=True)
            if tag == DONE:
                reader.check_end(payload, pages)
                return pages, reader.bytes
            if tag != PAGES:
                raise ImageError(f"{WHERE}: record {number}.tag: a second {tag!r}")
            member, meta, runs, contents = runs_of(payload, self._areas, f"{WHERE}: record {number}")
            await destination.agent.send_pages(RESTOREE + member, 0, meta, contents)
            pages += sum(run.pages for run in runs)
            number += 1
            display.sent(reader.bytes, pages, reader.bytes / max(time.monotonic() - begun, 1e-6))

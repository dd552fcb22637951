"""Framed messages over any stream of bytes: what the coordinator and the agents speak.

A frame is a header of 16 bytes, then its meta, then its blob:

    magic "MIG1" · kind u8 · flags u8 · slot u16 · length of the meta u32 · length of the blob u32   (little-endian)

    REQUEST  meta = JSON {"id": n, "verb": str, …}                    blob = what the verb takes, or nothing
    REPLY    meta = JSON {"id": n, "ok": true, …}, or
                    JSON {"id": n, "ok": false, "error": {"kind": str, "message": str, "errno": int or null}}
    PAGES    meta = flags u32, number of runs u32, then the runs       blob = the contents of the pages
    EVENT    meta = JSON {"event": str, …}, not asked for by anyone
    RING     meta = slot u32, length u32, then that of PAGES           the contents are in shared memory (`ring`)

The blob of a PAGES frame is at most 2 MiB and is never read by the destination agent: the restorer reads it from the
same descriptor, straight into place. So nothing here may read a byte more than it was asked for.

This file travels to the destination: standard library only, Python 3.9, no import from the rest of the package.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

MAGIC = b"MIG1"
HEADER = struct.Struct("<4sBBHII")
REQUEST, REPLY, PAGES, EVENT, RING = 1, 2, 3, 4, 5
KINDS = {REQUEST: "REQUEST", REPLY: "REPLY", PAGES: "PAGES", EVENT: "EVENT", RING: "RING"}

LZ4 = 1  # the only flag: the contents of a PAGES or RING frame are one LZ4 block

MAX_META = 16 << 20
MAX_PAGES_META = 1 << 20  # what a restorer takes
MAX_REQUEST_META = 4 << 20  # JSON grows in memory: the empty lists in this take 100 MB
MAX_BLOB = 64 << 20
MAX_PAGES_BLOB = 2 << 20
MAX_SLOT = 0xFFFF

Buffer = Union[bytes, bytearray, memoryview]


class FrameError(Exception):
    """What came is not a frame, or only a part of one. The stream cannot be used any further."""


class Header(NamedTuple):
    """The first 16 bytes of a frame. Lengths are in bytes."""

    kind: int
    flags: int
    slot: int
    meta_len: int
    blob_len: int


class Frame(NamedTuple):
    """A whole frame."""

    kind: int
    meta: bytes
    blob: Buffer = b""
    flags: int = 0
    slot: int = 0


# Writing


def head(kind: int, meta: bytes, blob_len: int = 0, flags: int = 0, slot: int = 0) -> bytes:
    """Header and meta of a frame; the blob is written after it by the caller, without a copy.

    Raises FrameError for what the other side would refuse.
    """
    if not 0 <= slot <= MAX_SLOT:
        raise FrameError(f"slot {slot} is not between 0 and {MAX_SLOT}")
    _check(kind, flags, len(meta), blob_len)
    return HEADER.pack(MAGIC, kind, flags, slot, len(meta), blob_len) + meta


def encode(frame: Frame) -> bytes:
    """The bytes of a whole frame."""
    return head(frame.kind, frame.meta, len(frame.blob), frame.flags, frame.slot) + bytes(frame.blob)


def json_meta(fields: dict[str, Any]) -> bytes:
    """The meta of a REQUEST, REPLY or EVENT. Paths with undecodable bytes survive as lone surrogates."""
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


# Reading


def parse_header(raw: bytes) -> Header:
    """The header in these 16 bytes. Raises FrameError that says what is wrong with it."""
    magic, kind, flags, slot, meta_len, blob_len = HEADER.unpack(raw)
    if magic != MAGIC:
        raise FrameError(f"not a frame: it begins with {magic!r} instead of {MAGIC!r}")
    _check(kind, flags, meta_len, blob_len)
    return Header(kind, flags, slot, meta_len, blob_len)


def _check(kind: int, flags: int, meta_len: int, blob_len: int) -> None:
    if kind not in KINDS:
        raise FrameError(f"no such kind of frame: {kind}")
    if flags & ~(LZ4 if kind in (PAGES, RING) else 0):
        raise FrameError(f"unknown flags {flags:#x} in a {KINDS[kind]} frame")
    limit = {PAGES: MAX_PAGES_META, REQUEST: MAX_REQUEST_META}.get(kind, MAX_META)
    if meta_len > limit:
        raise FrameError(f"the meta of a {KINDS[kind]} frame is {meta_len} bytes, the limit is {limit}")
    limit = MAX_PAGES_BLOB if kind == PAGES else MAX_BLOB
    if blob_len > limit:
        raise FrameError(f"the blob of a {KINDS[kind]} frame is {blob_len} bytes, the limit is {limit}")


def parse_json(meta: bytes) -> dict[str, Any]:
    """The fields of a REQUEST, REPLY or EVENT. Raises FrameError when they are not a JSON object."""
    try:
        fields = json.loads(meta)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the meta of a frame is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise FrameError(f"the meta of a frame is not a JSON object but {type(fields).__name__}")
    return fields


class Decoder:
    """Frames out of a stream that comes in pieces of any size."""

    def __init__(self) -> None:
        self._header: Header | None = None
        self._meta: bytes | None = None
        self._parts: list[Buffer] = []
        self._missing = HEADER.size
        self._broken: FrameError | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Takes the next bytes of the stream; the frames that they complete. A FrameError is raised for ever after."""
        if self._broken is not None:
            raise self._broken
        view = memoryview(data)
        frames: list[Frame] = []
        while True:
            if self._missing:
                if not view:
                    return frames
                piece = view[: self._missing]
                view = view[len(piece) :]
                self._parts.append(piece)
                self._missing -= len(piece)
                if self._missing:
                    return frames
            try:
                self._advance(frames)
            except FrameError as error:
                self._broken = error
                raise

    def _advance(self, frames: list[Frame]) -> None:
        whole = b"".join(self._parts)
        self._parts = []
        if self._header is None:
            self._header = parse_header(whole)
            self._missing = self._header.meta_len
        elif self._meta is None:
            self._meta = whole
            self._missing = self._header.blob_len
        else:
            frames.append(Frame(self._header.kind, self._meta, whole, self._header.flags, self._header.slot))
            self._header, self._meta, self._missing = None, None, HEADER.size

    def eof(self) -> None:
        """The stream has ended. Raises FrameError when it ended inside a frame."""
        if self._broken is not None:
            raise self._broken
        if self._header is not None or self._parts:
            part = "header" if self._header is None else "meta" if self._meta is None else "blob"
            raise FrameError(f"the stream ended inside the {part} of a frame, {self._missing} bytes short")


Wait = Callable[[], None]
"""Called before each read of a blocking descriptor: returns when there is something to be read, or raises."""


def _no_wait() -> None:
    """The read itself waits."""


def read_exactly(fd: int, length: int, wait: Wait = _no_wait) -> Buffer:
    """``length`` bytes from a blocking descriptor, and not one more. Raises FrameError when it ends before."""
    if not length:
        return b""
    wait()
    first = os.read(fd, length)
    if len(first) == length:
        return first
    buffer = bytearray(length)
    buffer[: len(first)] = first
    view, done = memoryview(buffer), len(first)
    while done < length:
        if first:
            wait()
        count = os.readv(fd, [view[done:]]) if first else 0
        if not count:
            raise FrameError(f"the stream ended {length - done} bytes short of {length}")
        done += count
    return buffer


def read_header(fd: int, wait: Wait = _no_wait) -> Header | None:
    """The next header from a blocking descriptor; None when the stream has ended between two frames."""
    wait()
    first = os.read(fd, HEADER.size)
    if not first:
        return None
    return parse_header(first + bytes(read_exactly(fd, HEADER.size - len(first), wait)))


def read_frame(fd: int) -> Frame | None:
    """The next whole frame from a blocking descriptor; None when the stream has ended between two frames."""
    header = read_header(fd)
    if header is None:
        return None
    meta = bytes(read_exactly(fd, header.meta_len))
    return Frame(header.kind, meta, read_exactly(fd, header.blob_len), header.flags, header.slot)


def discard(fd: int, length: int, wait: Wait = _no_wait) -> None:
    """Reads ``length`` bytes and forgets them."""
    while length:
        wait()
        count = len(os.read(fd, min(length, 1 << 18)))
        if not count:
            raise FrameError(f"the stream ended {length} bytes inside what was to be discarded")
        length -= count


def write_all(fd: int, *pieces: Buffer) -> None:
    """Writes the pieces to a blocking descriptor, with as few system calls as it takes."""
    views = [memoryview(piece) for piece in pieces if len(piece)]
    while views:
        written = os.writev(fd, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


# Page runs

CONTENTS, DROP, PUNCH = 0, 1, 2  # in the blob · madvise(MADV_DONTNEED) · madvise(MADV_REMOVE)
PAGE = 4096
_PAGES_HEAD = struct.Struct("<II")
_RUN = struct.Struct("<QII")


class Run(NamedTuple):
    """``pages`` pages from ``address`` on, and what becomes of them."""

    address: int
    pages: int
    what: int = CONTENTS


def pages_meta(runs: Sequence[Run], flags: int = 0) -> bytes:
    """The meta of a PAGES frame."""
    return _PAGES_HEAD.pack(flags, len(runs)) + b"".join(_RUN.pack(*run) for run in runs)


def parse_pages(meta: bytes) -> tuple[int, list[Run]]:
    """Flags and runs of a PAGES frame. Raises FrameError when the meta is not as long as it says."""
    return _pages_flags(meta), [Run(*fields) for fields in _RUN.iter_unpack(meta[_PAGES_HEAD.size :])]


def _pages_flags(meta: bytes) -> int:
    if len(meta) < _PAGES_HEAD.size:
        raise FrameError(f"the meta of a PAGES frame is only {len(meta)} bytes")
    flags, count = _PAGES_HEAD.unpack_from(meta)
    if len(meta) != _PAGES_HEAD.size + count * _RUN.size:
        raise FrameError(f"the meta of a PAGES frame is {len(meta)} bytes for {count} runs")
    return int(flags)


def check_pages(header_flags: int, meta: bytes, blob_len: int) -> None:
    """Raises FrameError when header, runs and length of a PAGES frame contradict each other: whoever reads the blob
    would then lose his place in the stream."""
    flags = _pages_flags(meta)
    if flags != header_flags:
        raise FrameError(f"a PAGES frame has the flags {header_flags:#x} in its header and {flags:#x} in its meta")
    if not flags & LZ4:
        runs = _RUN.iter_unpack(meta[_PAGES_HEAD.size :])
        length = PAGE * sum(pages for _, pages, what in runs if what == CONTENTS)
        if length != blob_len:
            raise FrameError(f"the runs of a PAGES frame hold {length} bytes, its blob {blob_len}")

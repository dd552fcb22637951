"""Checkpoints as streams, and images, from hostile hands: what is wrong with them is said, by the field."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.checkpoint.format import PAGE, decode_checkpoint
from migrate.checkpoint.stream import DONE, MAGIC, StreamReader, runs_of
from migrate.errors import ImageError
from migrate.pie.checksum import crc32c
from migrate.transport.frames import Run, pages_meta

AREAS = [(0x10000, 0x20000), (0x20000, 0x30000), (0x80000, 0x90000)]


@contextmanager
def reading(raw: bytes) -> Iterator[StreamReader]:
    receive, send = os.pipe()

    def feed() -> None:
        with os.fdopen(send, "wb") as out:
            out.write(raw)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield StreamReader(receive)
    finally:
        while os.read(receive, 1 << 16):
            pass
        os.close(receive)
        thread.join()


def record(tag: bytes, payload: bytes, crc: int | None = None, length: int | None = None) -> bytes:
    crc, length = crc32c(payload) if crc is None else crc, len(payload) if length is None else length
    head = struct.pack("<4sIQ", tag, crc, length)
    return head + payload


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "standard input: cut off in its head, 21 bytes short"),
        (b"migrate-checkpoint 1\n" + bytes(9), "not a checkpoint of this version"),
        (MAGIC, "cut off in the head of record 0, 16 bytes short"),
        (MAGIC + record(b"WHAT", b""), "record 0.tag: b'WHAT' is none"),
        (MAGIC + record(b"IMAG", b"x", length=1 << 60), "record 0.length: 1152921504606846976 bytes, at most"),
        (MAGIC + record(b"IMAG", b"x", length=9), "cut off in the payload of record 0, 8 bytes short"),
        (MAGIC + record(b"IMAG", b"x", crc=1), "record 0: its checksum is wrong"),
        (MAGIC + record(b"PAGE", b"x"), "record 0 is b'PAGE', not b'IMAG'"),
        (MAGIC + record(b"IMAG", b"x"), "standard input: image: no header"),
    ],
)
def test_the_beginning_of_a_stream(raw: bytes, said: str) -> None:
    with reading(raw) as reader, pytest.raises(ImageError) as caught:
        reader.checkpoint()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "record 0: not a JSON object"),
        (b"[]", "record 0: not a JSON object"),
        (b"{}", "record 0.pages: None, found 7"),
        (b'{"pages": 7}', "record 0.records: None, found 0"),
        (b'{"pages": 7, "records": 0, "heads": 3}', "record 0.heads: 3, found '"),
    ],
)
def test_the_end_of_a_stream(payload: bytes, said: str) -> None:
    with reading(record(DONE, payload)) as reader:
        tag, found = reader.next()
        assert tag == DONE
        with pytest.raises(ImageError) as caught:
            reader.check_end(found, 7)
    assert said in str(caught.value)


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_garbage_is_no_stream(raw: bytes) -> None:
    with reading(MAGIC + raw) as reader, pytest.raises(ImageError, match="standard input: "):
        reader.checkpoint()


def runs(*wanted: Run, pages: int | None = None, member: int = 0) -> bytes:
    meta = pages_meta(wanted)
    count = sum(run.pages for run in wanted) if pages is None else pages
    return struct.pack("<II", member, len(meta)) + meta + bytes(count * PAGE)


def test_pages_of_a_stream() -> None:
    """One run may lie in areas that touch."""
    wanted = [Run(0x1F000, 2), Run(0x80000, 16)]
    member, meta, found, contents = runs_of(runs(*wanted, member=1), [[], AREAS], "r")
    assert member == 1 and found == wanted and len(contents) == 18 * PAGE and meta == pages_meta(wanted)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "r.runs: 0 bytes are no record of pages"),
        (runs(Run(0x10000, 1), member=1), "r.process: 1, and there are 1"),
        (b"\0\0\0\0\xff\xff\xff\xff", "r.runs: the meta of a PAGES frame is only 0 bytes"),
        (runs(Run(0x10000, 1), pages=2), "r.runs: the runs of a PAGES frame hold 4096 bytes, its blob 8192"),
        (runs(Run(0x10000, 1), Run(0x2F000, 2)), "r.runs[1]: 2 pages at 0x2f000 are none of the process"),
        (runs(Run(0x10800, 1)), "r.runs[0]: 1 pages at 0x10800"),
        (runs(Run(0x10000, 0)), "r.runs[0]: 0 pages at 0x10000"),
        (runs(Run(0x10000, 1, 1), pages=0), "r.runs[0]: 1 pages at 0x10000"),
        (runs(Run(0xFFFFFFFFFFFFF000, 1)), "r.runs[0]: 1 pages at 0xfffffffffffff000"),
    ],
)
def test_pages_that_cannot_be(payload: bytes, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        runs_of(payload, [AREAS], "r")
    assert said in str(caught.value)


@given(st.binary(max_size=200))
def test_garbage_is_no_image(raw: bytes) -> None:
    with pytest.raises(ImageError, match="image"):
        decode_checkpoint(raw)

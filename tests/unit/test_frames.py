"""Frames: what is written is read again however it is cut up; garbage is refused in words; nobody reads too far."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.transport import frames
from migrate.transport.frames import Decoder, Frame, FrameError, Run

JSON_KINDS = (frames.REQUEST, frames.REPLY, frames.EVENT)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.text() | st.floats(allow_nan=False)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3))
fields = st.dictionaries(st.text(max_size=10), values, max_size=4)
json_frames = st.builds(
    lambda kind, meta, blob, slot: Frame(kind, frames.json_meta(meta), blob, 0, slot),
    st.sampled_from(JSON_KINDS), fields, st.binary(max_size=300), st.integers(0, frames.MAX_SLOT),
)
runs = st.lists(st.builds(Run, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2)), max_size=5)
page_frames = st.builds(
    lambda listed, flags, blob, slot: Frame(frames.PAGES, frames.pages_meta(listed, flags), blob, flags, slot),
    runs, st.sampled_from((0, frames.LZ4)), st.binary(max_size=300), st.integers(0, frames.MAX_SLOT),
)
some_frames = st.lists(json_frames | page_frames, max_size=6)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


def plain(frame: Frame) -> Frame:
    return frame._replace(blob=bytes(frame.blob), meta=bytes(frame.meta))


@given(some_frames, st.lists(st.integers(0, 10**6), max_size=20))
def test_any_cuts(sent: list[Frame], cuts: list[int]) -> None:
    decoder, got = Decoder(), []
    for piece in pieces(b"".join(map(frames.encode, sent)), cuts):
        got += decoder.feed(piece)
    decoder.eof()
    assert list(map(plain, got)) == sent


@given(json_frames | page_frames, st.data())
def test_truncation_is_told(frame: Frame, data: st.DataObject) -> None:
    whole = frames.encode(frame)
    cut = data.draw(st.integers(1, len(whole) - 1))
    decoder = Decoder()
    assert decoder.feed(whole[:cut]) == []
    with pytest.raises(FrameError, match="ended inside the (header|meta|blob) of a frame, [1-9]"):
        decoder.eof()
    assert list(map(plain, decoder.feed(whole[cut:]))) == [frame]
    decoder.eof()


@given(st.binary(min_size=16, max_size=200).filter(lambda data: data[:4] != frames.MAGIC))
def test_garbage_is_refused_and_stays_refused(garbage: bytes) -> None:
    decoder = Decoder()
    with pytest.raises(FrameError, match="not a frame"):
        decoder.feed(garbage)
    with pytest.raises(FrameError, match="not a frame"):
        decoder.feed(frames.encode(Frame(frames.EVENT, b"{}")))


bytes_ = st.integers(0, 255)
words = st.integers(0, 2**32 - 1)


@given(bytes_, bytes_, st.integers(0, 65535), words, words)
def test_any_header_is_taken_or_refused_in_words(kind: int, flags: int, slot: int, meta: int, blob: int) -> None:
    raw = frames.HEADER.pack(frames.MAGIC, kind, flags, slot, meta, blob)
    limit = frames.MAX_PAGES_BLOB if kind == frames.PAGES else frames.MAX_BLOB
    allowed = frames.LZ4 if kind == frames.PAGES else 0
    if kind in frames.KINDS and not flags & ~allowed and meta <= frames.MAX_META and blob <= limit:
        assert frames.parse_header(raw) == (kind, flags, slot, meta, blob)
    else:
        with pytest.raises(FrameError, match="no such kind|unknown flags|the limit is"):
            frames.parse_header(raw)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: frames.head(frames.REQUEST, bytes(frames.MAX_META + 1)), "meta of a REQUEST frame is 16777217 bytes"),
        (lambda: frames.head(frames.REPLY, b"", frames.MAX_BLOB + 1), "blob of a REPLY frame is 67108865 bytes"),
        (lambda: frames.head(frames.PAGES, b"", frames.MAX_PAGES_BLOB + 1), "blob of a PAGES frame is 2097153 bytes"),
        (lambda: frames.head(frames.EVENT, b"", slot=65536), "slot 65536 is not between"),
        (lambda: frames.head(9, b""), "no such kind of frame: 9"),
        (lambda: frames.parse_json(b"[1]"), "not a JSON object but list"),
        (lambda: frames.parse_json(b"{"), "not JSON"),
        (lambda: frames.parse_json(b"\xff\xfe"), "not JSON"),
        (lambda: frames.parse_json(b"[" * 100_000), "not JSON"),
        (lambda: frames.parse_pages(b"1234567"), "only 7 bytes"),
        (lambda: frames.parse_pages(frames.pages_meta([Run(0, 1)])[:-1]), "is 23 bytes for 1 runs"),
        (lambda: frames.check_pages(0, frames.pages_meta([Run(0, 1)], frames.LZ4), 1), "0x0 in its header and 0x1"),
        (lambda: frames.check_pages(0, frames.pages_meta([Run(0, 2), Run(0, 9, 1)]), 4096), "hold 8192 bytes"),
    ],
)
def test_refusals(make: Callable[[], object], says: str) -> None:
    with pytest.raises(FrameError, match=says):
        make()


def test_undecodable_paths_survive() -> None:
    path = os.fsdecode(b"/tmp/\xff\xfe")
    assert frames.parse_json(frames.json_meta({"path": path}))["path"] == path


@given(runs, st.sampled_from((0, frames.LZ4)))
def test_page_runs(listed: list[Run], flags: int) -> None:
    assert frames.parse_pages(frames.pages_meta(listed, flags)) == (flags, listed)


def feed(fd: int, *parts: bytes) -> threading.Thread:
    def write() -> None:
        for part in parts:
            os.write(fd, part)
        os.close(fd)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@given(some_frames, st.lists(st.integers(0, 10**6), max_size=8), st.binary(max_size=50))
def test_blocking_reader_never_reads_too_far(sent: list[Frame], cuts: list[int], rest: bytes) -> None:
    reading, writing = os.pipe()
    thread = feed(writing, *pieces(b"".join(map(frames.encode, sent)), cuts), rest)
    try:
        for frame in sent:
            got = frames.read_frame(reading)
            assert got is not None and plain(got) == frame
        assert bytes(frames.read_exactly(reading, len(rest))) == rest
        assert frames.read_header(reading) is None
    finally:
        thread.join()
        os.close(reading)


def test_contents_stay_in_the_pipe() -> None:
    """The restorer reads them from the same descriptor."""
    reading, writing = os.pipe()
    meta = frames.pages_meta([Run(0x1000, 1)])
    event = Frame(frames.EVENT, b"{}")
    thread = feed(writing, frames.head(frames.PAGES, meta, 4096) + b"x" * 4096 + frames.encode(event))
    try:
        header = frames.read_header(reading)
        assert header == (frames.PAGES, 0, 0, 24, 4096)
        assert bytes(frames.read_exactly(reading, 24)) == meta
        assert os.read(reading, 4096) == b"x" * 4096
        assert frames.read_frame(reading) == event
    finally:
        thread.join()
        os.close(reading)


@given(st.data())
def test_blocking_reader_tells_truncation(data: st.DataObject) -> None:
    whole = frames.encode(Frame(frames.REQUEST, b'{"id":1}', b"12345"))
    reading, writing = os.pipe()
    thread = feed(writing, whole[: data.draw(st.integers(1, len(whole) - 1))])
    try:
        with pytest.raises(FrameError, match="bytes short of"):
            frames.read_frame(reading)
    finally:
        thread.join()
        os.close(reading)


def test_discard_and_write_all() -> None:
    reading, writing = os.pipe()

    def write() -> None:
        frames.write_all(writing, b"a" * 200_000, b"", b"tail")
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        frames.discard(reading, 200_000)
        assert os.read(reading, 10) == b"tail"
        with pytest.raises(FrameError, match="7 bytes inside"):
            frames.discard(reading, 7)
    finally:
        thread.join()
        os.close(reading)


def test_parses_as_python_39() -> None:
    root = Path(__file__).parents[2]
    for file in (root / "migrate/transport/frames.py", *root.glob("agents/*.py")):
        if file.name != "source.py":
            ast.parse(file.read_text(), feature_version=(3, 9))

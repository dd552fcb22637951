"""Digests of pages (agents/pages.py), on this process's own memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import pages

PAGE = pages.PAGE
SIZE = 8 * PAGE


@pytest.fixture(params=[True, False], ids=["PAGEMAP_SCAN", "entries"])
def scan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With the ioctl where there is one, and without."""
    if not request.param:
        monkeypatch.setattr(pages, "_PAGEMAP_SCAN", 0xC060660F)  # no such ioctl
    yield


def at(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def digests(*areas: tuple[int, int, int, int], masks: list[tuple[int, int]] | None = None) -> dict[int, int]:
    fields, blob = pages.digests(os.getpid(), areas, masks or [])
    assert fields == {"next": None, "unread": []}
    return dict(struct.iter_unpack("<QQ", blob))


def digest(page: bytes) -> int:
    page = page.ljust(PAGE, b"\0")
    return zlib.crc32(page) << 32 | zlib.adler32(page)


def test_private_memory(scan: None) -> None:
    with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start = at(memory)
        memory[2 * PAGE : 2 * PAGE + 5] = b"hello"
        memory[5 * PAGE] = 0  # there, and as good as not there
        assert digests((start, start + SIZE, pages.ANONYMOUS, 0)) == {start + 2 * PAGE: digest(b"hello")}
        masked = digests((start, start + SIZE, pages.ANONYMOUS, 0), masks=[(start + 2 * PAGE + 1, PAGE)])
        assert masked == {start + 2 * PAGE: digest(b"h")}


def test_private_memory_of_a_file(scan: None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * SIZE)
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    start = at(memory)
    assert memory[PAGE] == ord("f")  # the file's
    memory[3 * PAGE : 4 * PAGE] = bytes(PAGE)  # the process's own, of zeros
    assert digests((start, start + SIZE, pages.PRIVATE_FILE, 0)) == {start + 3 * PAGE: digest(b"")}
    every = digests((start, start + SIZE, pages.ALL, 0))
    assert every == {start + n * PAGE: digest(b"" if n == 3 else b"f" * PAGE) for n in range(8)}


def test_shared_memory() -> None:
    """The pages of the object, also those that the process has never looked at."""
    descriptor = os.memfd_create("digests")
    try:
        os.ftruncate(descriptor, SIZE)
        os.pwrite(descriptor, b"unseen", 4 * PAGE)
        memory = mmap.mmap(descriptor, 6 * PAGE, offset=2 * PAGE)
        start = at(memory)
        found = digests((start, start + 6 * PAGE, pages.SHARED, 2 * PAGE))
        assert found == {start + 2 * PAGE: digest(b"unseen")}
    finally:
        os.close(descriptor)


def test_answers_are_of_bounded_size_and_go_on(scan: None) -> None:
    with mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start, end = at(memory), at(memory) + (4 << 20)
        memory[:] = os.urandom(4 << 20)
        whole = digests((start, end, pages.ANONYMOUS, 0))
        parts: dict[int, int] = {}
        following: int | None = start
        while following is not None:
            fields, blob = pages.digests(os.getpid(), [(following, end, pages.ANONYMOUS, 0)], [], limit=300)
            assert len(blob) <= (300 + 256) * 16
            parts |= dict(struct.iter_unpack("<QQ", blob))
            following = fields["next"]
        assert len(whole) == 1024 and parts == whole


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"s" * PAGE)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), PAGE, mmap.MAP_PRIVATE)
        os.ftruncate(file.fileno(), 0)
    start = at(memory)
    fields, blob = pages.digests(os.getpid(), [(start, start + PAGE, pages.ALL, 0)], [])
    assert fields["unread"] == [(start, 1)] and blob == b""

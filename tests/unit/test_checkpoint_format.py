"""Checkpoints on disk, without a process: what is written is read again, and what is damaged is said by name."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.checkpoint.directory import found_at, new_place, opened
from migrate.checkpoint.format import (
    BLOCK,
    PAGE,
    Extent,
    File,
    Manifest,
    digest,
    parse_manifest,
)
from migrate.checkpoint.pages import Ancestor, PageMap, PageWriter, check_blocks
from migrate.errors import ImageError, Refused

MANIFEST = Manifest(
    1.5, 812, "xz", {"image": File(3, digest(b"abc")), "pages": File(2 * BLOCK, None), "sums": File(8, "00")},
    {"0001": "aa"},
)  # fmt: skip
PID = 813
BASE = 0x7F00_0000_0000


# The manifest


def test_a_manifest() -> None:
    assert parse_manifest(MANIFEST.text()) == MANIFEST


@given(st.data())
def test_every_damaged_byte_of_a_manifest_is_found(data: st.DataObject) -> None:
    raw = bytearray(MANIFEST.text())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ImageError, match="manifest"):
        parse_manifest(bytes(raw))
    with pytest.raises(ImageError, match="manifest: cut off"):
        parse_manifest(MANIFEST.text()[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary(max_size=200))
def test_garbage_is_no_manifest(raw: bytes) -> None:
    with pytest.raises(ImageError, match="manifest"):
        parse_manifest(raw)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["format"], "x", "manifest.format: 'x' is not"),
        (["version"], 1, "manifest.version: 1, and only 3"),
        (["version"], None, "manifest.version: expected int, found NoneType"),
        (["pid"], "812", "manifest.pid: expected int, found str"),
        (["taken"], [], "manifest.taken: expected float, found list"),
        (["files"], [], "manifest.files: expected dict, found list"),
        (["files", "image"], ..., "manifest.files.image: is missing"),
        (["files", "image", "size"], -1, "manifest.files.image.size: -1 bytes"),
        (["files", "image", "size"], 1 << 40, "manifest.files.image.size: 1099511627776 bytes, at most"),
        (["files", "image", "digest"], None, "manifest.files.image.digest: expected str, found NoneType"),
        (["files", "pages", "size"], 4097, "manifest.files.pages.size: 4097 bytes are no number of pages"),
        (["files", "sums", "size"], 4, "manifest.files.sums.size: 4 bytes, where 8 belong"),
        (["ancestors", "../../etc"], "x", "manifest.ancestors: '../../etc' is not the name of a checkpoint"),
        (["ancestors", "0001"], 1, "manifest.ancestors.0001: expected str, found int"),
    ],
)
def test_fields_of_a_manifest(path: list[str], value: Any, said: str) -> None:
    fields = json.loads(MANIFEST.text().splitlines()[0])
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    line = json.dumps(fields).encode() + b"\n"
    with pytest.raises(ImageError) as caught:
        parse_manifest(line + digest(line).encode() + b"\n")
    assert said in str(caught.value)


# Pages


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 5000), st.booleans()), max_size=12))
def test_a_map_of_pages_is_like_a_dict(steps: list[tuple[int, int, bool]]) -> None:
    known, wanted, place = PageMap(), dict[int, tuple[int, int]](), 0
    for first, count, drop in steps:
        if drop:
            known.forget(BASE + first * PAGE, count)
            for page in range(first, first + count):
                wanted.pop(page, None)
            continue
        known.set(BASE + first * PAGE, count, place % 3, place)
        wanted.update({first + index: (place % 3, place + index) for index in range(count)})
        place += count
    found = {}
    last = 0
    for extent in known.extents():
        assert extent.address >= last
        last = extent.address + extent.pages * PAGE
        for index in range(extent.pages):
            found[(extent.address - BASE) // PAGE + index] = extent.file, extent.at + index
    assert found == wanted
    low, high = 3000, 6000
    known.keep([(BASE + low * PAGE, BASE + high * PAGE)])
    assert sum(extent.pages for extent in known.extents()) == sum(low <= page < high for page in wanted)


def page(value: int) -> bytes:
    return value.to_bytes(8, "little") * (PAGE // 8)


@pytest.fixture
def pages_file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "p", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def test_pages_that_come_again_keep_their_place(pages_file: int) -> None:
    """Whatever comes in which order: the last contents count, and the checksums are of what is there."""
    chance = random.Random(5)
    for _ in range(20):
        os.ftruncate(pages_file, 0)
        writer, wanted = PageWriter(pages_file), dict[int, int]()
        writer.follow({0: 812, 1: PID})
        for _ in range(40):
            first, count = chance.randrange(2000), chance.randrange(1, 600)
            address = BASE + first * PAGE
            if chance.random() < 0.2:
                writer.take(1, [(address, count, 1)], b"")
                for each in range(first, first + count):
                    wanted.pop(each, None)
                continue
            value = chance.randrange(1 << 40)
            writer.take(1, [(address, count, 0)], page(value) * count)
            wanted.update(dict.fromkeys(range(first, first + count), value))
        found = {}
        assert not list(writer.maps[0].extents())
        for extent in writer.maps[1].extents():
            for index in range(extent.pages):
                raw = os.pread(pages_file, PAGE, (extent.at + index) * PAGE)
                found[(extent.address - BASE) // PAGE + index] = int.from_bytes(raw[:8], "little")
                assert raw == page(int.from_bytes(raw[:8], "little"))
        assert found == wanted
        size = writer.pages * PAGE
        assert size == os.fstat(pages_file).st_size
        blocks = range(-(-size // BLOCK))
        check_blocks(pages_file, writer.sums(), size, blocks, "p")
        at = chance.randrange(size)
        os.pwrite(pages_file, bytes([os.pread(pages_file, 1, at)[0] ^ 1]), at)
        with pytest.raises(ImageError, match=f"p: the checksum of block {at // BLOCK} "):
            check_blocks(pages_file, writer.sums(), size, blocks, "p")


def test_pages_that_an_ancestor_has_are_not_written(pages_file: int, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "q", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        before = PageWriter(fd)
        before.follow({0: PID})
        before.take(0, [(BASE, 300, 0)], b"".join(page(number) for number in range(300)))
        known = PageMap()
        for extent in before.maps[0].extents():
            known.set(extent.address, extent.pages, 1, extent.at)
        writer = PageWriter(pages_file, Ancestor({1: fd}, {PID: known}))
        writer.follow({0: 812, 1: PID})
        changed = {7, 8, 100, 299}
        now = [page(number + (1000 if number in changed else 0)) for number in range(300)]
        writer.take(1, [(BASE, 300, 0), (BASE + (1 << 30), 1, 0)], b"".join(now) + page(5))
        assert writer.pages == len(changed) + 1
        writer.take(1, [(BASE + 7 * PAGE, 1, 0)], page(7))  # as it was: back to the ancestor's
        assert list(writer.maps[1].extents()) == [
            Extent(BASE, 8, 1, 0),
            Extent(BASE + 8 * PAGE, 1, 0, 1),
            Extent(BASE + 9 * PAGE, 91, 1, 9),
            Extent(BASE + 100 * PAGE, 1, 0, 2),
            Extent(BASE + 101 * PAGE, 198, 1, 101),
            Extent(BASE + 299 * PAGE, 1, 0, 3),
            Extent(BASE + (1 << 30), 1, 0, 4),
        ]
    finally:
        os.close(fd)


# The directory


def write_one(path: Path) -> None:
    """As a dump does it, with an image that is none."""
    with new_place(str(path), series=False) as (place, _):
        writer = PageWriter(place.create("pages"))
        writer.follow({0: PID})
        writer.take(0, [(BASE, 2, 0)], page(1) + page(2))
        image = place.add("image", b"state")
        sums = place.add("sums", writer.sums())
        place.finish(Manifest(1.0, 1, "x", {"image": image, "pages": File(2 * PAGE, None), "sums": sums}, {}))


CALLS = ("mkdir", "open", "pwritev", "fsync", "rename")


@pytest.mark.parametrize("name", CALLS)
def test_a_crash_at_any_write_leaves_none_that_looks_whole(name: str, tmp_path: Path) -> None:
    """In a process of its own, which ends before, and after, each of these calls."""
    seen_whole = seen_not = number = 0
    while True:
        for moment in ("before", "after"):
            path = tmp_path / f"{name}-{number}-{moment}"
            child = os.fork()
            if not child:
                _crash(name, number, moment, path)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 0:
                assert seen_not and (seen_whole or name not in ("rename", "fsync")) and number
                return
            assert code == 9
            if not path.exists():
                continue
            try:
                found, _ = found_at(str(path))
            except ImageError as error:
                seen_not += 1
                assert "was never finished" in str(error) or "there is no checkpoint" in str(error)
                continue
            seen_whole += 1
            with pytest.raises(ImageError, match="image: not msgpack"), opened(found):
                raise AssertionError("that image is none")
            assert (path / "pages").read_bytes() == page(1) + page(2)
        number += 1


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cannot be done, by exception."""
    number = 0
    for name in CALLS:
        for number in range(100):
            path = tmp_path / f"{name}-{number}"
            with monkeypatch.context() as patch:
                left = [number]
                patch.setattr(os, name, failing(getattr(os, name), left))
                with suppress(OSError, Refused):
                    write_one(path)
                if left[0] >= 0:
                    assert (path / "manifest").exists()
                    break
            assert not path.exists() or (path / "manifest").exists()
        assert number


def failing(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def fails(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(28, "No space left on device")
        return call(*args, **kwargs)

    return fails


def test_two_at_once(tmp_path: Path) -> None:
    with new_place(str(tmp_path / "s"), series=True) as (place, before):
        assert place.path.endswith("s/0001") and before is None
        with pytest.raises(Refused, match="another checkpoint is being written there"):
            with new_place(str(tmp_path / "s"), series=True):
                raise AssertionError


def test_a_series_goes_on_after_one_that_was_never_finished(tmp_path: Path) -> None:
    series = tmp_path / "s"
    (series / "0001").mkdir(parents=True, mode=0o700)
    series.chmod(0o700)
    (series / "0001" / "manifest").write_text("")
    (series / "0002").mkdir()
    (series / "0002" / "image").write_text("")
    with new_place(str(series), series=True) as (place, before):
        assert place.path.endswith("/0003") and before == "0001"
    assert found_at(str(series)) == (str(series / "0001"), ["0001", "0002"])


def test_a_checkpoint_is_no_series(tmp_path: Path) -> None:
    write_one(tmp_path / "c")
    with pytest.raises(Refused, match="is a checkpoint by itself"):
        with new_place(str(tmp_path / "c"), series=True):
            raise AssertionError
    assert (tmp_path / "c" / "manifest").exists()


def _crash(name: str, number: int, moment: str, path: Path) -> NoReturn:
    """In a process of its own: end at the ``number``-th call."""
    left = number
    call = getattr(os, name)

    def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1 and moment == "before":
            os._exit(9)
        result = call(*args, **kwargs)
        if left == -1:
            os._exit(9)
        return result

    setattr(os, name, crashing)
    try:
        write_one(path)
        os._exit(0)
    finally:
        os._exit(1)

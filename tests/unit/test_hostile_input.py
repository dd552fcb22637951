"""Truncated, reordered, oversized and random input: whoever gets it says what is wrong and ends, within bounds of
memory, and has done nothing of what was only half said. `make fuzz` does the same for longer, guided by coverage."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate.transport import frames
from migrate.transport.frames import PAGE, Frame
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS, agent, decoder

ROOM = 320 << 20  # bytes: a message of the greatest size, read and parsed
SESSION = seeds.session()
VERBS = "hello read stat digest statvfs ping tids overseer stage run sync pages abort".split()
NAMES = "paths nofollow lengths path restorees new_pid_namespace parts return_image pid areas".split()
scalars = st.none() | st.booleans() | st.integers() | st.integers(-2, 5) | st.text(max_size=9) | st.just("/etc/passwd")
lists = st.lists(scalars | st.lists(scalars, max_size=3), max_size=3)
values: st.SearchStrategy[Any] = scalars | lists | st.just({"a": {}})
requests = st.builds(
    lambda fields, verb, number, blob: frames.encode(
        Frame(frames.REQUEST, frames.json_meta({**fields, "verb": verb, "id": number}), blob)
    ),
    st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), values, max_size=4),
    st.sampled_from(VERBS) | values,
    st.integers() | values,
    st.binary(max_size=40),
)
headers = st.builds(
    frames.HEADER.pack, st.sampled_from([frames.MAGIC, b"MIG2"]), st.integers(0, 7), st.integers(0, 3),
    st.integers(0, 4), st.integers(0, 64) | st.integers(0, 2**32 - 1), st.integers(0, 64) | st.integers(0, 2**32 - 1),
)  # fmt: skip
streams = st.lists(st.sampled_from(SESSION) | requests | headers | st.binary(max_size=60), max_size=6).map(b"".join)
bounded = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than ROOM besides what is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(data: bytes) -> str:
    """What the agent says at its end."""
    with little_memory():
        session = agent(data)
    assert session.status == 1
    return str(session.said[-1]["message"])


@bounded
@given(streams)
def test_the_agent_hears_anything(data: bytes) -> None:
    with little_memory():
        agent(data)


@bounded
@given(streams, st.integers(0, 10**6), st.integers(0, 255))
def test_the_agent_hears_something_damaged(data: bytes, place: int, value: int) -> None:
    damaged = bytearray(data or b"x")
    damaged[place % len(damaged)] = value
    with little_memory():
        agent(bytes(damaged))


@bounded
@given(st.permutations(SESSION))
def test_the_agent_hears_it_in_another_order(messages: list[bytes]) -> None:
    session = agent(b"".join(messages))
    assert session.status == 0


def test_the_agent_does_nothing_that_was_only_half_said() -> None:
    """Cut at every byte but those in the middle of a page."""
    whole = b"".join(SESSION)
    done = agent(whole).told
    assert [each[0] for each in done] == ["run", "run", "place", "run"]
    ends = [sum(map(len, SESSION[: count + 1])) for count in range(len(SESSION))]
    acts = [6, 6, 7, 10]  # which message each of them is of
    page = range(ends[6] + 100, ends[7] - 100)
    for cut in range(len(whole)):
        if cut in page:
            continue
        session = agent(whole[:cut])
        assert session.told == [each for each, message in zip(done, acts, strict=True) if ends[message] <= cut], cut
        assert session.status == (cut not in (0, *ends)), cut
        if session.status:
            assert "ended" in session.said[-1]["message"], session.said[-1]


def test_what_is_too_large_is_refused_by_its_header() -> None:
    huge = 2**32 - 1
    for kind, meta, blob, says in (
        (frames.REQUEST, huge, 0, "the meta of a REQUEST frame is 4294967295 bytes, the limit is 4194304"),
        (frames.REQUEST, 2, huge, "the blob of a REQUEST frame is 4294967295 bytes, the limit is 67108864"),
        (frames.PAGES, 8, 3 << 20, "the blob of a PAGES frame is 3145728 bytes, the limit is 2097152"),
        (frames.PAGES, 2 << 20, 0, "the meta of a PAGES frame is 2097152 bytes, the limit is 1048576"),
        (frames.REPLY, 2, 0, "a REPLY frame is not for an agent"),
    ):
        assert says in refusal(frames.HEADER.pack(frames.MAGIC, kind, 0, 0, meta, blob) + b"{}"), says


@pytest.mark.parametrize(
    "meta",
    [b"[" + b"[]," * (frames.MAX_REQUEST_META // 3 - 2) + b"[]]", b"[" * 1_000_000, b'"' + b"x" * (2 << 20) + b'"'],
    ids=["wide", "deep", "long"],
)
def test_json_that_grows_in_memory(meta: bytes) -> None:
    with little_memory():
        session = agent(frames.encode(Frame(frames.REQUEST, meta)))
    assert session.status == 1 and "JSON" in session.said[-1]["message"]


def test_verbs_do_not_gather_more_than_fits() -> None:
    """Files without an end, thousands of restorees, digests of all the address space, a mask of an exabyte."""
    start = 1 << 16
    messages = [
        seeds.request("read", paths=["/dev/zero"] * 100),
        seeds.request("overseer", restorees=1_000_000),
        seeds.request("pages", pid=os.getpid(), areas=[[start, 1 << 47, 3, 0]], masks=[]),
        seeds.request("pages", pid=os.getpid(), areas=[[start, 1 << 47, 3, 0]], masks=[[0, 1 << 60]]),
        seeds.request("stdio_log", name="x" * 300),
    ]
    with little_memory():
        session = agent(b"".join(messages))
    read, overseer, some, masked, log = session.said
    assert session.status == 0 and read["lengths"].count(16 << 20) == 3 and read["lengths"].count(-27) == 97
    assert overseer["error"]["message"] == "overseer: 1000000 restorees"
    assert some["ok"] and some["next"] < 1 << 47
    assert "a mask of" in masked["error"]["message"] and "not a file name" in log["error"]["message"]


def test_arguments_are_looked_at_before_anything_is_done() -> None:
    overseer = seeds.request("overseer", restorees=1)
    for arguments, says in (
        ({"parts": [[0, 5], [7, 8]]}, "there is no slot 7"),
        ({"parts": [[0, 14], [0, -1]]}, "13 bytes of programs"),
        ({"parts": [[0, 5], ["0", 8]]}, "parts is not list[list[int]]"),
        ({"parts": [[0, 13]], "return_image": 1}, "return_image is not bool"),
        ({"parts": [[0, 13]], "blob": "x"}, "no such argument: 'blob'"),
        ({"parts": [[0, 13]], "more": 1}, "no such argument: 'more'"),
    ):
        session = agent(overseer + seeds.request("run", b"first program", **arguments))
        assert session.told == [] and says in session.said[-1]["error"]["message"], session.said[-1]


# The coordinator's end, and images


@bounded
@given(streams)
def test_the_coordinator_hears_anything(data: bytes) -> None:
    with little_memory():
        decoder(data)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a msgpack document."""
    yield path
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from nodes(inner, (*path, index))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    return [replaced(inner, path[1:], new) if index == path[0] else inner for index, inner in enumerate(value)]


odd = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9)
    | st.lists(st.integers(0, 9), max_size=3) | st.dictionaries(st.text(max_size=3), st.none(), max_size=2)
)  # fmt: skip


@pytest.mark.parametrize("kind", ["preview", "layout", "image"])
def test_a_value_of_another_kind_is_named(kind: str) -> None:
    """In images of a real process: where it stands, unless it may stand there."""
    raw = seeds.images()[kind]
    header, body = msgpack.unpackb(raw, unicode_errors="surrogateescape", strict_map_key=False)
    places = [path for path in nodes(body) if path]
    named = 0

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(places), odd)
    def check(place: tuple[Any, ...], value: Any) -> None:
        nonlocal named
        packed = msgpack.packb([header, replaced(body, place, value)], unicode_errors="surrogateescape")
        if said := str(TARGETS[kind](packed)):
            assert said.startswith(("image.", "image: not msgpack", "image: no header")), (place, value, said)
            named += said.startswith("image.")

    check()
    assert named > 20


@bounded
@given(st.sampled_from(["preview", "layout", "image"]), st.data())
def test_damaged_images(kind: str, data: st.DataObject) -> None:
    raw = bytearray(seeds.images()[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with little_memory():
        TARGETS[kind](bytes(raw[: data.draw(st.integers(0, len(raw)))]))

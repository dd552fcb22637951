"""Quantities and names, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.wording import count, parse_bandwidth, parse_duration, printable, rate, seconds, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("300ms", 0.3), ("0.3s", 0.3), ("300", 0.3), ("2m", 120.0), (".5 s", 0.5), ("250us", 250e-6), (" 1s ", 1.0)],
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "ms", "-1ms", "0", "0ms", "3h", "1e3", "1s2ms", "inf", "nan", "٣ms1"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is no time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100MB/s", 100e6),
        ("100M", 100e6),
        ("64MiB/s", 64 * 2**20),
        ("1Gbit/s", 125e6),
        ("1Gb/s", 125e6),
        ("800kbps", 100e3),
        ("10B", 10),
        ("1.5 GB/s", 1.5e9),
    ],
)
def test_bandwidths(text: str, expected: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "100", "MB/s", "0MB/s", "-1MB/s", "1bit/s", "100MB/m", "fast"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a bandwidth|never finish"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (412 << 20, "412 MiB"),
        (1 << 30, "1.0 GiB"),
        (1023 << 20, "1.0 GiB"),
        (int(9.96 * 2**20), "10 MiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_sizes(value: int, expected: str) -> None:
    assert size(value) == expected


@given(st.floats(0, 999 * 2**40))
def test_a_size_never_grows_wide(value: float) -> None:
    assert len(size(value)) <= len("999 MiB") and len(rate(value)) <= len("999 MiB/s")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0114, "11.4 ms"), (0, "0.0 ms"), (0.99949, "999.5 ms"), (0.9996, "1.0 s"), (1.94, "1.9 s"), (119.9, "119.9 s"),
     (125, "2 min 05 s"), (7325, "2 h 02 min")],
)  # fmt: skip
def test_seconds(value: float, expected: str) -> None:
    assert seconds(value) == expected


def test_counts() -> None:
    assert [count(n, "page") for n in (0, 1, 105472)] == ["0 pages", "1 page", "105,472 pages"]


def test_names_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[31mb\x9bc\udcff\u202e") == r"a\x1b[31mb\x9bc\xff\u202e"


@given(st.text(alphabet=st.characters()))
def test_only_newlines_survive(text: str) -> None:
    assert printable(text).replace("\n", "").isprintable()

"""CRC-32C, with the CPU's instruction and without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.pie import checksum
from migrate.pie.checksum import crc32c


@pytest.fixture(params=sorted({False, checksum.has_instruction()}))
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as this CPU can."""
    monkeypatch.setattr(checksum, "has_instruction", lambda: request.param)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize(("data", "expected"), [
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRC algorithms
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
])
def test_what_is_known(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c(memoryview(b"x" + data)[1:]) == expected  # not aligned


@given(st.binary(max_size=300), st.integers(0, 300))
def test_in_pieces(data: bytes, at: int) -> None:
    assert crc32c(data[at:], crc32c(data[:at])) == crc32c(data)


def test_the_slow_way_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(n * n >> 3 & 255 for n in range(10_001))
    quick = crc32c(bytearray(data))
    monkeypatch.setattr(checksum, "has_instruction", lambda: False)
    assert crc32c(bytearray(data)) == quick

"""Numbers and names as people write and read them."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|µs|ms|s|m|min)?", re.ASCII)
_SECONDS = {None: 1e-3, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
_BANDWIDTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKMGT]i?)?(bit|bps|b|B)?(/s)?", re.ASCII)
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_SCALE = {"k": 2**10, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_duration(text: str) -> float:
    """Seconds in ``300ms``, ``0.3s``, ``2m`` or ``300`` (milliseconds). ValueError says what is wrong with it."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 300ms or 0.3s")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all")
    return seconds


def parse_bandwidth(text: str) -> float:
    """Bytes per second in ``100MB/s``, ``100M``, ``64MiB/s`` or ``1Gbit/s`` (a small b is a bit, a large B a byte)."""
    match = _BANDWIDTH.fullmatch(text.strip())
    if match is None or not (match[2] or match[3]):
        raise ValueError(f"{text!r} is not a bandwidth such as 100MB/s or 1Gbit/s")
    prefix = match[2] or ""
    scale = _BINARY_SCALE[prefix[0]] if prefix.endswith("i") else _SCALE[prefix]
    bandwidth = float(match[1]) * scale / (8 if match[3] in ("bit", "bps", "b") else 1)
    if bandwidth < 1:
        raise ValueError(f"{text!r} would never finish")
    return bandwidth


def size(count: float) -> str:
    """``412 MiB``: three digits at most, so that it does not flicker."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 999.5 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if unit != "B" and count < 9.95 else f"{count:.0f} {unit}"


def rate(bytes_per_second: float) -> str:
    """``655 MiB/s``."""
    return size(bytes_per_second) + "/s"


def seconds(value: float) -> str:
    """``1.9 s``, and for shorter times ``11.4 ms``."""
    if value < 0.9995:
        return f"{value * 1000:.1f} ms"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def count(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``, ``105,472 pages``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """Text that cannot command a terminal: names of processes and files are chosen by others."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, by surrogateescape
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

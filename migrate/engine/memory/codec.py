"""Whether page frames are compressed: LZ4 blocks, never, always, or when it pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

import lz4.block

_SAMPLE_EVERY = 32  # frames: what the memory holds changes on the way through it
_PAYS = 0.9  # compressed must take less than this part of the time


class Compress(Enum):
    NONE = "none"
    LZ4 = "lz4"
    AUTO = "auto"


class Compressor:
    """Compresses frames, or finds that it is no use.

    With AUTO the first frame and every 32nd one after it is compressed on trial. The link and the compressing run
    beside one another, so that a frame takes as long as the slower of the two: with LZ4 max(time to compress, ratio
    / link), without 1 / link. ``link_rate``: bytes a second as measured so far, None if unknown; then a ratio of 0.7
    is taken to pay.
    """

    def __init__(self, mode: Compress, link_rate: Callable[[], float | None] = lambda: None) -> None:
        self._mode = mode
        self._link_rate = link_rate
        self._frames = 0
        self._use = mode is Compress.LZ4

    def __call__(self, contents: memoryview) -> bytes | None:
        """The LZ4 block, or None to send the contents as they are."""
        trial = self._mode is Compress.AUTO and self._frames % _SAMPLE_EVERY == 0
        self._frames += 1
        if not self._use and not trial:
            return None
        start = time.perf_counter()
        block: bytes = lz4.block.compress(contents, store_size=False)
        if trial:
            self._use = self._pays(len(contents), len(block), time.perf_counter() - start)
        return block if self._use and len(block) < len(contents) else None

    def _pays(self, size: int, compressed: int, seconds: float) -> bool:
        rate = self._link_rate()
        if not rate:
            return compressed < 0.7 * size
        return max(seconds, compressed / rate) < _PAYS * size / rate

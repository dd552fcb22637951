"""Where a function of a vDSO will return to: by the call frame information in its image (.eh_frame; DWARF 5, 6.4).

What of that is used in a vDSO is little: the frame is at a distance from rsp or rbp, and rbp is saved in it or not.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from migrate.engine.vdso.image import VDSO

_RBP, _RSP = 6, 7  # DWARF register numbers (System V ABI, AMD64 supplement, figure 3.36)
_DEPTH = 8  # calls inside of a vDSO: its functions call at most one more
_FAR_ABOVE = 1 << 16  # bytes; no function of a vDSO has a frame of such a size


@dataclass(frozen=True)
class _Row:
    """From one address on: the canonical frame address is register + offset, and rbp was saved at that + ``rbp``."""

    address: int
    register: int
    offset: int
    rbp: int | None


_LEAF = _Row(0, _RSP, 8, None)  # nothing pushed: as all assembly of a vDSO that has no such information


class Unwinder:
    """Of one image, wherever it is mapped."""

    def __init__(self, vdso: VDSO) -> None:
        """Of an empty one: of code that pushes nothing, all of it."""
        self._size = len(vdso.image)
        self._rows: list[_Row] = []
        self._functions: list[tuple[int, int]] = []  # start, end
        if vdso.image:
            with ELFFile(io.BytesIO(vdso.image)) as elf:
                for entry in elf.get_dwarf_info(relocate_dwarf_sections=False).EH_CFI_entries():
                    if isinstance(entry, FDE):
                        start = int(entry["initial_location"])
                        self._functions.append((start, start + int(entry["address_range"])))
                        self._rows += [_row(row) for row in entry.get_decoded().table]
        self._functions.sort()
        self._rows.sort(key=lambda row: row.address)
        self._starts = [row.address for row in self._rows]

    def slot(
        self, base: int, rip: int, rsp: int, rbp: int, inside: Callable[[int], bool], word: Callable[[int], int]
    ) -> int | None:
        """The address of the return address that leads out of the code.

        ``base``: where the image is mapped; ``inside``: whether an address is in the code; ``word``: reads eight bytes
        of the stack. None: it cannot be told.
        """
        for _ in range(_DEPTH):
            if self._size and rip - base >= self._size:
                return None  # behind the image: in what a tracer that was killed has left there
            row = self._row_of(rip - base)
            frame = (rsp if row.register == _RSP else rbp) + row.offset
            if row.register not in (_RSP, _RBP) or not rsp < frame <= rsp + _FAR_ABOVE:
                return None
            target = word(frame - 8)
            if not inside(target):
                return frame - 8
            if row.rbp is not None:
                rbp = word(frame + row.rbp)
            rip, rsp = target, frame
        return None

    def _row_of(self, offset: int) -> _Row:
        at = bisect.bisect_right(self._functions, (offset, 1 << 64)) - 1
        if at < 0 or offset >= self._functions[at][1]:
            return _LEAF
        return self._rows[bisect.bisect_right(self._starts, offset) - 1]


def _row(decoded: dict[Any, Any]) -> _Row:
    cfa, saved = decoded["cfa"], decoded.get(_RBP)
    if cfa.expr is not None or (saved is not None and saved.type not in ("OFFSET", "SAME_VALUE", "UNDEFINED")):
        return _Row(int(decoded["pc"]), -1, 0, None)  # a rule that no kernel has used so far
    rbp = int(saved.arg) if saved is not None and saved.type == "OFFSET" else None
    return _Row(int(decoded["pc"]), int(cfa.reg), int(cfa.offset), rbp)

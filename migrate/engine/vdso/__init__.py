"""The vDSO: code of the kernel that every process has mapped, and that the C library calls (vdso(7)).

Another kernel, another vDSO: other functions at other offsets. A task keeps calling the addresses it has resolved, so
on the destination the same functions must stand at the same addresses.

    image   what a vDSO is
    decide  what becomes of it on another kernel
    place   moving the destination's own
    proxy   making the old one lead into the new one
    stubs   the machine code of that
    mark    how a later dump knows
    unwind  where its functions return to
"""

from migrate.engine.vdso.decide import Decision, Entry, Verdict, decide
from migrate.engine.vdso.image import NAMES, VDSO, VDSO_NAME, Area, Function, NoVDSO, areas, collect, of_ia32
from migrate.engine.vdso.mark import Mark, StrangeMark
from migrate.engine.vdso.place import exchange_ops, move_op, park_ops, place_ops
from migrate.engine.vdso.proxy import build, choose_base, proxy_ops, room_needed
from migrate.engine.vdso.unwind import Unwinder

__all__ = [
    "NAMES", "VDSO", "VDSO_NAME", "Area", "Decision", "Entry", "Function", "Mark", "NoVDSO", "StrangeMark", "Unwinder",
    "Verdict", "areas", "build", "choose_base", "collect", "decide", "exchange_ops", "move_op", "of_ia32",
    "park_ops", "place_ops", "proxy_ops", "room_needed",
]  # fmt: skip

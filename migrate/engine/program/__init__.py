"""Programs of system calls: ops, assembler, listing."""

from migrate.engine.program.ops import Address, Arg, Buffer, Check, Load, Op, OpKind, Slot
from migrate.engine.program.program import MAX_PROGRAM, Linked, Program, Results

__all__ = [
    "MAX_PROGRAM",
    "Address",
    "Arg",
    "Buffer",
    "Check",
    "Linked",
    "Load",
    "Op",
    "OpKind",
    "Program",
    "Results",
    "Slot",
]

"""What makes a thread the one it was: its number and name, and the addresses that it has given to the kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from migrate.engine.kernel.prctl import PR_GET_NAME, PR_GET_TID_ADDRESS, PR_SET_NAME
from migrate.engine.program import Program, Results

NAME_SIZE = 16  # TASK_COMM_LEN
ReadMemory = Callable[[int, int], bytes]  # (address, length) in the task


@dataclass(frozen=True)
class Identity:
    """``tid`` as the task itself knows it. Addresses are 0 where none was given."""

    tid: int
    name: str  # comm; bytes that are not UTF-8 as surrogates
    tid_address: int  # set_tid_address(2), CLONE_CHILD_CLEARTID
    robust_list: int  # set_robust_list(2)
    robust_list_size: int

    @classmethod
    def collect(cls, program: Program, compat: bool = False) -> Callable[[Results], Identity]:
        """Four ops. ``compat``: of a process of 32 bits."""
        words = program.space(24)  # tid address, robust list head, its size
        name = program.space(NAME_SIZE)
        tid = program.syscall("gettid", label="thread number")
        program.syscall("prctl", PR_GET_TID_ADDRESS, words, 0, 0, 0, label="clear_child_tid")
        if compat:  # a list of its own (compat_robust_list of task_struct), in words of half the size
            program.call32("get_robust_list", 0, words.at(8), words.at(16), label="robust list")
        else:
            program.syscall("get_robust_list", 0, words.at(8), words.at(16), label="robust list")
        program.syscall("prctl", PR_GET_NAME, name, 0, 0, 0, label="name")

        def decode(results: Results) -> Identity:
            address, head, size = struct.unpack("<QQQ", results.bytes(words))
            comm = results.bytes(name).partition(b"\0")[0].decode("utf-8", "surrogateescape")
            return cls(results.of(tid), comm, address, head, size)

        return decode

    def restore(self, program: Program, compat: bool = False) -> None:
        """By the thread itself, which was created with its number (clone3 set_tid)."""
        program.syscall("set_tid_address", self.tid_address, label="clear_child_tid", expect=self.tid)
        if self.robust_list:
            call = program.call32 if compat else program.syscall
            call("set_robust_list", self.robust_list, self.robust_list_size, label="robust list")
        program.syscall("prctl", PR_SET_NAME, program.string(self.name), 0, 0, 0, label="name")


@dataclass(frozen=True)
class Rseq:
    """A registration of rseq(2): where the kernel tells a thread its CPU, and looks for critical sections. The tracer
    asks for it (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13)."""

    address: int
    size: int
    signature: int

    def restore(self, program: Program) -> None:
        """By the thread itself, with its memory in place: the kernel writes there, and forgets the critical section
        that is noted there; `rseq_abort_ip` has been asked before."""
        program.syscall("rseq", self.address, self.size, 0, self.signature, label="rseq")


_RSEQ_CS_AT = 8  # offset of rseq_cs in struct rseq
_CRITICAL_SECTION = struct.Struct("<IIQQQ")  # struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip


def rseq_abort_ip(read: ReadMemory, rseq: Rseq | None, ip: int) -> int | None:
    """Where a thread that stands at ``ip`` must go on, if that is inside a critical section; None: where it is.

    A move is a preemption and a migration at once, and after either the kernel sends the thread to the section's abort
    handler when it returns to user space (rseq_ip_fixup, kernel/rseq.c). A stopped thread has not returned yet, so its
    registers still show the inside; at the destination the restorer's code runs in between, upon which the kernel drops
    the section as left. So its rule is applied here. A section with a wrong signature would have got SIGSEGV: not ours
    to give.
    """
    if rseq is None:
        return None
    descriptor = int.from_bytes(read(rseq.address + _RSEQ_CS_AT, 8), "little")
    if not descriptor:
        return None
    version, _, start, length, abort = _CRITICAL_SECTION.unpack(read(descriptor, _CRITICAL_SECTION.size))
    if version or not 0 <= ip - start < length:
        return None
    signature = int.from_bytes(read(abort - 4, 4), "little")
    return int(abort) if signature == rseq.signature else None

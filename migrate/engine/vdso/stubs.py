"""The machine code of a proxy: jumps, and what stands in for a function that the destination's vDSO does not have."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from migrate.engine.kernel.syscalls import NUMBERS

NEAR, FAR = 5, 14  # bytes of a jump: jmp rel32, which reaches 2 GiB; jmp *0(%rip) with the address behind it
REACH = (1 << 31) - (1 << 16)  # bytes that a near jump is counted on to reach

_SYSCALL, _RET = b"\x0f\x05", b"\xc3"

# What a function without its prefix __vdso_ is replaced by: the system call that does the same. The vDSO's functions
# return what the system call does, -errno included.
SYSTEM_CALLS = ("clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu", "getrandom")

# Functions that read nothing of the kernel's and so can stay: "futex: Provide VDSO functions for unlocking robust
# futexes" (7.x), a compare-and-exchange and a store. What their own kernel adds, that it finishes the store for a
# thread that is killed between the two, is what a kernel without them cannot give either.
SELF_CONTAINED: Mapping[str, bytes] = {
    # mov %esi,%eax; xor %ecx,%ecx; lock cmpxchg %ecx,(%rdi); jne; mov %rcx,(%rdx); ret
    "futex_robust_list64_try_unlock": bytes.fromhex("89f031c9f00fb10f750348890ac3"),
    "futex_robust_list32_try_unlock": bytes.fromhex("89f031c9f00fb10f7502890ac3"),
}

# Functions that fail on a machine without what they are for (vdso_sgx_enter_enclave_t, asm/sgx.h: 0 or -errno).
FAILING = ("sgx_enter_enclave",)


def jump(at: int, target: int, room: int) -> bytes:
    """Code to put at ``at`` that goes on at ``target`` with all registers as they are. ValueError: it does not fit into
    ``room`` bytes."""
    distance = target - (at + NEAR)
    if -(1 << 31) <= distance < 1 << 31 and room >= NEAR:
        return b"\xe9" + struct.pack("<i", distance)
    if room >= FAR:
        return b"\xff\x25\0\0\0\0" + struct.pack("<Q", target)
    raise ValueError(f"a jump over {abs(distance):#x} bytes does not fit into {room}")


def stub(name: str) -> bytes | None:
    """Code for a function that the destination lacks; None: nothing is known to take its place."""
    name = bare(name)
    if name == "getrandom":
        return _getrandom()
    if name in SYSTEM_CALLS:
        return _call(NUMBERS[name])
    if name in SELF_CONTAINED:
        return SELF_CONTAINED[name]
    if name in FAILING:
        return _return(-errno.ENOSYS)
    return None


def described(name: str) -> str:
    """What `stub` does, in words."""
    name = bare(name)
    if name in SYSTEM_CALLS:
        return f"system call {name}"
    return "the same code, in the stub" if name in SELF_CONTAINED else "fails with ENOSYS"


def bare(name: str) -> str:
    """Without the prefix that the kernel gives its own names."""
    return name.removeprefix("__vdso_")


def _call(number: int) -> bytes:
    return b"\xb8" + struct.pack("<I", number) + _SYSCALL + _RET  # mov $number,%eax


def _return(value: int) -> bytes:
    return b"\x48\xc7\xc0" + struct.pack("<i", value) + _RET  # mov $value,%rax


def _getrandom() -> bytes:
    """The system call takes the first three arguments. A question about the size of the state (no buffer, no length, no
    flags, and an opaque_len of ~0UL: "random: introduce generic vDSO getrandom() implementation", Linux 6.11) must not
    get that far, for it would succeed and answer nothing. It fails: whoever asks does without state then. What an
    earlier answer led to, memory for states, stays and is not used."""
    answer = _call(NUMBERS["getrandom"])
    tests = (
        b"\x49\x83\xf8\xff",  # cmp $-1,%r8
        b"\x48\x85\xff",  # test %rdi,%rdi
        b"\x48\x85\xf6",  # test %rsi,%rsi
        b"\x85\xd2",  # test %edx,%edx
    )
    refuse = _return(-errno.ENOSYS)
    code, left = b"", sum(len(test) + 2 for test in tests) + len(refuse)
    for test in tests:
        left -= len(test) + 2
        code += test + b"\x75" + bytes([left])  # jne to the system call
    return code + refuse + answer

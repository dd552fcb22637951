"""The machine code of a proxy: jumps, and what stands in for a function that the destination's vDSO does not have."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Mapping

from migrate.engine.kernel.syscalls import NUMBERS, NUMBERS_32

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


# The same of 32 bits.
SYSTEM_CALLS_32 = (*SYSTEM_CALLS[:-1], "clock_gettime64", "clock_getres_time64")  # all but getrandom
SELF_CONTAINED_32: Mapping[str, bytes] = {
    # mov 4(%esp),%edx; mov 8(%esp),%eax; xor %ecx,%ecx; lock cmpxchg %ecx,(%edx); jne; mov 12(%esp),%edx;
    # mov %ecx,(%edx); ret
    "futex_robust_list32_try_unlock": bytes.fromhex("8b5424048b44240831c9f00fb10a75068b54240c890ac3"),
}

# __kernel_vsyscall: push %ecx, %edx, %ebp; what the CPU has besides int $0x80 (sysenter, syscall, or nothing), with
# what that needs in %ebp; int $0x80; pop %ebp, %edx, %ecx; ret. In 7.x before that, where the CPU has nothing else,
# int $0x80; ret
_VSYSCALL = re.compile(rb"(?:...)?\x51\x52\x55(....)\xcd\x80\x5d\x5a\x59\xc3", re.DOTALL)
_PLAIN = b"\xcd\x80\xc3"
_NOP = b"\x0f\x1f\x40\x00"


def kernel_entry_32(name: str, code: bytes) -> bytes | None:
    """What is written over one of the entries by which code of 32 bits comes to the kernel, and back from a signal
    handler; None: nothing is known of it. ``code``: what stands there.

    The quick ways in come back in the vDSO that the kernel knows of, which is not this one any more
    (do_fast_syscall_32()). So they are left out; who sleeps in a call is where he would be otherwise. The ways back
    from a handler are but system calls."""
    if name in ("__kernel_sigreturn", "__kernel_rt_sigreturn") or code.startswith(_PLAIN):
        return b""
    found = _VSYSCALL.match(code) if name == "__kernel_vsyscall" else None
    return code[: found.start(1)] + _NOP if found else None


def jump(at: int, target: int, room: int, compat: bool = False) -> bytes:
    """Code to put at ``at`` that goes on at ``target`` with all registers as they are. ValueError: it does not fit into
    ``room`` bytes."""
    distance = target - (at + NEAR)
    if compat and room >= NEAR:
        return b"\xe9" + struct.pack("<I", distance & 0xFFFF_FFFF)  # addresses wrap around
    if -(1 << 31) <= distance < 1 << 31 and room >= NEAR:
        return b"\xe9" + struct.pack("<i", distance)
    if room >= FAR:
        return b"\xff\x25\0\0\0\0" + struct.pack("<Q", target)
    raise ValueError(f"a jump over {abs(distance):#x} bytes does not fit into {room}")


def stub(name: str, compat: bool = False) -> bytes | None:
    """Code for a function that the destination lacks; None: nothing is known to take its place."""
    name = bare(name)
    if compat:
        return _call_32(NUMBERS_32[name]) if name in SYSTEM_CALLS_32 else SELF_CONTAINED_32.get(name)
    if name == "getrandom":
        return _getrandom()
    if name in SYSTEM_CALLS:
        return _call(NUMBERS[name])
    if name in SELF_CONTAINED:
        return SELF_CONTAINED[name]
    if name in FAILING:
        return _return(-errno.ENOSYS)
    return None


def described(name: str, compat: bool = False) -> str:
    """What `stub` does, in words."""
    name = bare(name)
    if name in (SYSTEM_CALLS_32 if compat else SYSTEM_CALLS):
        return f"system call {name}"
    return "the same code, in the stub" if name in SELF_CONTAINED else "fails with ENOSYS"


def bare(name: str) -> str:
    """Without the prefix that the kernel gives its own names."""
    return name.removeprefix("__vdso_")


def _call(number: int) -> bytes:
    return b"\xb8" + struct.pack("<I", number) + _SYSCALL + _RET  # mov $number,%eax


def _call_32(number: int) -> bytes:
    """With two arguments, which are on the stack. (The third one of getcpu(2) has been unused since Linux 2.6.24.)"""
    return (
        b"\x89\xda\x8b\x5c\x24\x04\x8b\x4c\x24\x08"  # mov %ebx,%edx; mov 4(%esp),%ebx; mov 8(%esp),%ecx
        b"\xb8" + struct.pack("<I", number) + b"\xcd\x80\x89\xd3\xc3"  # mov $number,%eax; int $0x80; mov %edx,%ebx
    )


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

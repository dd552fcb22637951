"""ptrace(2), wait4(2) and their neighbours, as they are: numbers and bytes in, OSError out.

All requests for a task must come from the thread that seized it: a tracer is a thread, not a process (ptrace(2)).
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from cffi import FFI

_ffi = FFI()
# ptrace and syscall are variadic in C; declared with fixed arguments they are called alike on x86-64, and faster.
_ffi.cdef(
    """
    long ptrace(long request, long tid, uintptr_t address, uintptr_t data);
    long syscall(long number, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);
    int wait4(int tid, int *status, int options, void *usage);
    struct iovec { uintptr_t base; size_t length; };
    """
)
_libc: Any = _ffi.dlopen(None)

NUMBER, WAIT4 = 101, 61  # system calls
# include/uapi/linux/ptrace.h
CONT, _SINGLESTEP, GETREGS, SETREGS, _DETACH, SYSCALL, _GET_THREAD_AREA = 7, 9, 12, 13, 17, 24, 25
SETOPTIONS, _GETSIGINFO = 0x4200, 0x4202
GETREGSET, _SETREGSET, SEIZE, INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
PEEKSIGINFO, GETSIGMASK, SETSIGMASK, GET_RSEQ_CONFIGURATION, _DISPATCH = 0x4209, 0x420A, 0x420B, 0x420F, 0x4211
_SECCOMP_GET_FILTER, _SECCOMP_GET_METADATA = 0x420C, 0x420D

EVENT_STOP = 128
O_TRACESYSGOOD = 1
O_SUSPEND_SECCOMP = 1 << 21
SYSCALL_STOP = 0x80  # bit of the signal number in a system-call stop, with O_TRACESYSGOOD
NT_X86_XSTATE = 0x202  # include/uapi/linux/elf.h

REGS_SIZE = 27 * 8  # struct user_regs_struct
SIGINFO_SIZE = 128  # siginfo_t
_XSTATE_MAX = 1 << 16  # bytes; the largest area of today (AMX) is 11,008
_PEEK_BATCH = 64
WALL, WNOHANG = 0x40000000, 1

_PIDFD_OPEN, _PIDFD_GETFD, _KCMP = 434, 438, 312


def _fail(what: str, tid: int) -> OSError:
    number = _ffi.errno
    return OSError(number, f"{what} of {tid}: {os.strerror(number)}")


def _address(buffer: Any) -> int:
    return int(_ffi.cast("uintptr_t", buffer))


def _request(request: int, what: str, tid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, tid, address, data)
    if result < 0:
        raise _fail(what, tid)
    return result


# Coming and going


def seize(tid: int, options: int = O_TRACESYSGOOD) -> None:
    """Become the tracer of one thread, which runs on. Without PTRACE_O_EXITKILL: when we die, it lives."""
    _request(SEIZE, "PTRACE_SEIZE", tid, 0, options)


def interrupt(tid: int) -> None:
    """Make it stop soon; nothing that it sees tells that it did."""
    _request(INTERRUPT, "PTRACE_INTERRUPT", tid)


def cont(tid: int, signal: int = 0) -> None:
    """Let it run on, delivering ``signal`` if it is in a signal-delivery-stop."""
    _request(CONT, "PTRACE_CONT", tid, 0, signal)


def cont_to_syscall(tid: int, signal: int = 0) -> None:
    """Let it run on until it enters or leaves a system call."""
    _request(SYSCALL, "PTRACE_SYSCALL", tid, 0, signal)


def step(tid: int) -> None:
    """Let it run one instruction."""
    _request(_SINGLESTEP, "PTRACE_SINGLESTEP", tid)


def detach(tid: int, signal: int = 0) -> None:
    """Stop being its tracer; it runs on, or goes back to its group-stop."""
    _request(_DETACH, "PTRACE_DETACH", tid, 0, signal)


def set_options(tid: int, options: int) -> None:
    """Replace the options given to `seize`."""
    _request(SETOPTIONS, "PTRACE_SETOPTIONS", tid, 0, options)


class Stop(NamedTuple):
    """What wait4(2) tells about a tracee."""

    status: int

    @property
    def stopped(self) -> bool:
        """In a ptrace-stop; otherwise it has ended, and is reaped."""
        return os.WIFSTOPPED(self.status)

    @property
    def signal(self) -> int:
        """The signal about to be delivered, or of the group-stop, or SIGTRAP."""
        return (self.status >> 8) & 0xFF

    @property
    def event(self) -> int:
        """`EVENT_STOP` for what `interrupt` brings and for a group-stop; 0 for a signal-delivery-stop."""
        return self.status >> 16


def wait(tid: int) -> Stop | None:
    """What it has to report, or None at once. ChildProcessError: it is no tracee of ours (any more)."""
    status = _ffi.new("int *")
    while True:
        result = _libc.wait4(tid, status, WALL | WNOHANG, _ffi.NULL)
        if result > 0:
            return Stop(int(status[0]))
        if result == 0:
            return None
        if _ffi.errno != errno.EINTR:
            raise _fail("wait4", tid)


# State of a stopped thread


def get_registers(tid: int) -> bytes:
    """struct user_regs_struct."""
    out = _ffi.new("char[]", REGS_SIZE)
    _request(GETREGS, "PTRACE_GETREGS", tid, 0, _address(out))
    return bytes(_ffi.buffer(out))


def set_registers(tid: int, registers: bytes) -> None:
    """struct user_regs_struct; orig_rax = -1 says that there is no system call to restart."""
    data = _ffi.from_buffer(registers)
    _request(SETREGS, "PTRACE_SETREGS", tid, 0, _address(data))


def get_xstate(tid: int) -> bytes:
    """The whole XSAVE area in the standard format; bytes 464 to 471 are the components of this machine."""
    out = _ffi.new("char[]", _XSTATE_MAX)
    vector: Any = _ffi.new("struct iovec *", {"base": _address(out), "length": _XSTATE_MAX})
    _request(GETREGSET, "PTRACE_GETREGSET", tid, NT_X86_XSTATE, _address(vector))
    return bytes(_ffi.buffer(out, vector.length))


def set_xstate(tid: int, area: bytes) -> None:
    """Put back what `get_xstate` gave."""
    data = _ffi.from_buffer(area)
    vector = _ffi.new("struct iovec *", {"base": _address(data), "length": len(area)})
    _request(_SETREGSET, "PTRACE_SETREGSET", tid, NT_X86_XSTATE, _address(vector))


def get_thread_area(tid: int, entry: int) -> bytes:
    """struct user_desc of an entry of the descriptor table, numbered as in its selector (PTRACE_GET_THREAD_AREA)."""
    out = _ffi.new("char[]", 16)
    _request(_GET_THREAD_AREA, "PTRACE_GET_THREAD_AREA", tid, entry, _address(out))
    return bytes(_ffi.buffer(out))


def get_signal_mask(tid: int) -> int:
    """The blocked signals, signal n as bit n - 1; inside sigsuspend, ppoll and the like the mask that is to come back
    ("ptrace: take into account saved_sigmask in PTRACE_{GET,SET}SIGMASK", Linux 5.1)."""
    out = _ffi.new("uint64_t *")
    _request(GETSIGMASK, "PTRACE_GETSIGMASK", tid, 8, _address(out))
    return int(out[0])


def set_signal_mask(tid: int, mask: int) -> None:
    """Set the blocked signals; SIGKILL and SIGSTOP never are."""
    data = _ffi.new("uint64_t *", mask)
    _request(SETSIGMASK, "PTRACE_SETSIGMASK", tid, 8, _address(data))


def get_signal_code(tid: int) -> int:
    """si_code of the signal of this stop: above 0 the kernel raised it, else somebody sent it."""
    out = _ffi.new("char[]", SIGINFO_SIZE)
    _request(_GETSIGINFO, "PTRACE_GETSIGINFO", tid, 0, _address(out))
    return int(struct.unpack_from("<i", _ffi.buffer(out), 8)[0])


def pending_signals(tid: int, shared: bool) -> list[bytes]:
    """The siginfo_t of each queued signal, in order: of the thread or, with ``shared``, of the process. They stay."""
    found: list[bytes] = []
    out = _ffi.new("char[]", _PEEK_BATCH * SIGINFO_SIZE)
    while True:
        ask = _ffi.from_buffer(struct.pack("<QIi", len(found), int(shared), _PEEK_BATCH))
        got = _request(PEEKSIGINFO, "PTRACE_PEEKSIGINFO", tid, _address(ask), _address(out))
        raw = bytes(_ffi.buffer(out, got * SIGINFO_SIZE))
        found += [raw[i : i + SIGINFO_SIZE] for i in range(0, len(raw), SIGINFO_SIZE)]
        if got < _PEEK_BATCH:
            return found


@dataclass(frozen=True)
class RseqConfiguration:
    """Where a thread registered its struct rseq (rseq(2); Linux 4.18, asked for since 5.13)."""

    address: int
    size: int
    signature: int
    flags: int


def rseq_configuration(tid: int) -> RseqConfiguration | None:
    """None: not registered, or a kernel that cannot say."""
    out = _ffi.new("char[]", 24)
    try:
        _request(GET_RSEQ_CONFIGURATION, "PTRACE_GET_RSEQ_CONFIGURATION", tid, 24, _address(out))
    except OSError as error:
        if error.errno != errno.EIO:  # an unknown request
            raise
        return None
    configuration = RseqConfiguration(*struct.unpack_from("<QIII", _ffi.buffer(out)))
    return configuration if configuration.address else None


def syscall_dispatch(tid: int) -> bytes | None:
    """struct ptrace_sud_config (PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4); None: a kernel that cannot say."""
    out = _ffi.new("char[]", 32)
    try:
        _request(_DISPATCH, "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", tid, 32, _address(out))
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EINVAL):
            raise
        return None
    return bytes(_ffi.buffer(out))


_FILTER_MAX = 4096 * 8  # bytes: BPF_MAXINSNS of struct sock_filter


def seccomp_filters(tid: int) -> list[tuple[int, bytes]]:
    """Flags and code (of struct sock_filter) of each, the oldest first; of a thread in that mode. OSError: EACCES
    without CAP_SYS_ADMIN or from under seccomp."""
    found: list[tuple[int, bytes]] = []
    out = _ffi.new("char[]", _FILTER_MAX)
    while True:
        try:
            count = _request(_SECCOMP_GET_FILTER, "PTRACE_SECCOMP_GET_FILTER", tid, len(found), _address(out))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return found
        metadata = _ffi.from_buffer(bytearray(struct.pack("<QQ", len(found), 0)))
        _request(_SECCOMP_GET_METADATA, "PTRACE_SECCOMP_GET_METADATA", tid, 16, _address(metadata))
        (flags,) = struct.unpack_from("<Q", _ffi.buffer(metadata), 8)
        found.append((flags, bytes(_ffi.buffer(out, count * 8))))


# Neighbours


def _syscall(number: int, what: str, tid: int, *args: int) -> int:
    padded = args + (0,) * (6 - len(args))
    result: int = _libc.syscall(number, *(arg & 0xFFFF_FFFF_FFFF_FFFF for arg in padded))
    if result < 0:
        raise _fail(what, tid)
    return result


def pidfd_open(pid: int) -> int:
    """A descriptor of the process, close-on-exec (pidfd_open(2))."""
    return _syscall(_PIDFD_OPEN, "pidfd_open", pid, pid, 0)


def pidfd_getfd(pidfd: int, descriptor: int) -> int:
    """A duplicate of a descriptor of another process, close-on-exec (pidfd_getfd(2), Linux 5.6)."""
    return _syscall(_PIDFD_GETFD, f"pidfd_getfd({descriptor})", pidfd, pidfd, descriptor, 0)


KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM, KCMP_EPOLL_TFD = range(8)


def kcmp(pid1: int, pid2: int, kind: int, index1: int, index2: int) -> int:
    """0: the same kernel object; 1 and 2: an order to sort by; 3: different (kcmp(2))."""
    return _syscall(_KCMP, "kcmp", pid1, pid1, pid2, kind, index1, index2)

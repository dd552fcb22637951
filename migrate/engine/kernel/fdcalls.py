"""System calls about the descriptors of another process, and of kinds that Python has no names for.

All raise OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import termios

from migrate.engine.kernel.syscalls import NUMBERS

F_GETOWN_EX, F_GETSIG, F_SETOWN_EX, F_SETSIG = 16, 11, 15, 10  # asm-generic/fcntl.h
F_GETPIPE_SZ, F_SETPIPE_SZ = 1032, 1031  # linux/fcntl.h
F_GET_SEALS, F_ADD_SEALS = 1034, 1033
F_DUPFD_CLOEXEC = 1030
O_PATH, O_TMPFILE_BIT, O_DIRECT, O_LARGEFILE = 0o10000000, 0o20000000, 0o40000, 0o100000
_KCMP_FILE, KCMP_FILES, KCMP_FS, _KCMP_EPOLL_TFD = 0, 2, 3, 7  # linux/kcmp.h; the last since 4.13
_SPLICE_F_NONBLOCK = 2
_MAX_PIPE = 1 << 31
_PAGE = mmap.PAGESIZE
_OWNER = struct.Struct("<ii")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 7


def _call(name: str, *args: int) -> int:
    result = int(_libc.syscall(NUMBERS[name], *args, *(0,) * (6 - len(args))))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A duplicate here of descriptor ``number`` there, close-on-exec; the caller's to close (pidfd_getfd(2))."""
    return _call("pidfd_getfd", pidfd, number)


def compare_files(pid: int, one: int, other_pid: int, other: int) -> int:
    """Open file descriptions in an order that means nothing but holds until the kernel restarts: 0 when two
    descriptors are of the same one, else -1 or 1 (kcmp(2), KCMP_FILE)."""
    return (0, -1, 1)[_call("kcmp", pid, other_pid, _KCMP_FILE, one, other)]


def same_file(pid: int, one: int, other_pid: int, other: int) -> bool:
    """Whether two descriptors are of one open file description."""
    return compare_files(pid, one, other_pid, other) == 0


def epoll_watches(pid: int, epoll: int, target: int, nth: int) -> bool:
    """Whether the file that the ``nth`` watch of ``epoll`` registered as ``target`` is still the one which that number
    leads to. OSError EBADF when the number is not in use, ENOENT when there is no such watch."""
    slot = ctypes.create_string_buffer(struct.pack("<III", epoll, target, nth))
    return _call("kcmp", pid, pid, _KCMP_EPOLL_TFD, target, ctypes.addressof(slot)) == 0


def file_owner(fd: int) -> tuple[int, int, int]:
    """(F_OWNER_TID, _PID or _PGRP; the number, 0 for none; the signal, 0 for SIGIO): fcntl(2), F_GETOWN_EX."""
    kind, number = _OWNER.unpack(fcntl.fcntl(fd, F_GETOWN_EX, bytes(_OWNER.size)))
    return kind, number, fcntl.fcntl(fd, F_GETSIG)


def pending_bytes(fd: int) -> int:
    """How much a read would give (FIONREAD)."""
    return int(struct.unpack("<i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def unsent_bytes(fd: int) -> int:
    """How much memory of a unix socket's send buffer is taken by what its receivers have not read (SIOCOUTQ)."""
    return int(struct.unpack("<i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))[0])


def pipe_contents(fd: int) -> tuple[bytes, ...]:
    """What is in the pipe, of which ``fd`` is a reading end, left in it: tee(2) into one of ours. One item for each
    read that a reader with a large buffer would do, so that packets (O_DIRECT) keep their bounds.

    OSError EPERM when it holds more than a pipe of ours may (/proc/sys/fs/pipe-max-size, without CAP_SYS_RESOURCE).
    """
    waiting = pending_bytes(fd)
    if not waiting:
        return ()
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        capacity = fcntl.fcntl(fd, F_GETPIPE_SZ)
        if capacity > fcntl.fcntl(into, F_GETPIPE_SZ):
            fcntl.fcntl(into, F_SETPIPE_SZ, capacity)
        copied = _call("tee", fd, into, _MAX_PIPE - 1, _SPLICE_F_NONBLOCK)
        chunks = []
        while copied > 0:
            chunks.append(os.read(out, copied))
            copied -= len(chunks[-1])
        return tuple(chunks)
    finally:
        os.close(out)
        os.close(into)


def before_last(fd: int, size: int) -> int:
    """How many of the next ``size`` bytes of a stream of unix sockets, to be looked at from SO_PEEK_OFF on, come before
    the last piece of them that was sent at once. Only of that do descriptors come with them, but MSG_PEEK gives these
    with whatever comes before, too (unix_stream_read_generic(), net/unix/af_unix.c). But it stops before a piece for
    which there is no room in memory: so the last byte has none."""
    usable = -(-size // _PAGE) * _PAGE
    with mmap.mmap(-1, usable + _PAGE) as area:
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        _call("mprotect", start + usable, _PAGE, 0)
        vector = ctypes.create_string_buffer(struct.pack("<QQ", start + usable - (size - 1), size))
        header = ctypes.create_string_buffer(
            struct.pack("<QI4xQQQQi4x", 0, 0, ctypes.addressof(vector), 1, 0, 0, 0)  # msghdr
        )
        try:
            return _call("recvmsg", fd, ctypes.addressof(header), socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return 0  # it is the first piece as well


def set_namespace(fd: int, kind: int) -> None:
    """setns(2) of the calling thread. ``kind``: the CLONE_NEW… flag of what ``fd`` is."""
    _call("setns", fd, kind)


def mq_attributes(fd: int) -> tuple[int, int, int] | None:
    """Of a POSIX message queue (mq_getattr(3)): messages that there may be, bytes in one, messages that there are.
    None: it is none."""
    room = ctypes.create_string_buffer(64)
    try:
        _call("mq_getsetattr", fd, 0, ctypes.addressof(room))
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOSYS):  # nothing else is said of other files
            return None
        raise
    _, most, largest, count = struct.unpack_from("<4q", room.raw)
    return most, largest, count


def timerfd_gettime(fd: int) -> int:
    """timerfd_gettime(2): nanoseconds until it fires next. The periods that passed unread are counted by that
    (timerfd_get_remaining and hrtimer_forward_now in do_timerfd_gettime, fs/timerfd.c)."""
    room = ctypes.create_string_buffer(32)
    _call("timerfd_gettime", fd, ctypes.addressof(room))
    _, _, seconds, nanoseconds = struct.unpack("<4q", room.raw)
    return int(seconds) * 10**9 + int(nanoseconds)


def open_by_handle(mount: int, handle_type: int, handle: bytes) -> int:
    """open_by_handle_at(2) with O_PATH; needs CAP_DAC_READ_SEARCH. ``mount``: any descriptor on the filesystem."""
    raw = ctypes.create_string_buffer(struct.pack("<Ii", len(handle), handle_type) + handle)
    number = _OPEN_BY_HANDLE_AT
    result = int(_libc.syscall(number, mount, ctypes.addressof(raw), O_PATH | os.O_CLOEXEC, 0, 0, 0))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"open_by_handle_at: {os.strerror(error)}")
    return result


_OPEN_BY_HANDLE_AT = 304

"""The memory of another process: process_vm_readv(2), process_vm_writev(2) and /proc/PID/mem."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NewType

from cffi import FFI

RemoteAddress = NewType("RemoteAddress", int)
"""An address in the task; it means nothing here, and cannot be taken for one of ours."""

IOV_MAX = 1024  # include/uapi/linux/uio.h: UIO_MAXIOV

_ffi = FFI()
_ffi.cdef(
    """
    struct iovec { uintptr_t base; size_t length; };
    typedef const struct iovec *vector;
    ssize_t process_vm_readv(int, vector, unsigned long, vector, unsigned long, unsigned long);
    ssize_t process_vm_writev(int, vector, unsigned long, vector, unsigned long, unsigned long);
    """
)
_libc: Any = _ffi.dlopen(None)


class Memory:
    """Reads and writes the memory of ``pid``, stopped or not. Close it after use.

    OSError: EFAULT names the address that is not there, ESRCH says that the process is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._mem = -1

    def read(self, address: RemoteAddress, size: int) -> bytes:
        """``size`` bytes."""
        return self.read_many([(address, size)])[0]

    def write(self, address: RemoteAddress, data: bytes) -> None:
        """Into memory that the task itself could write."""
        self.write_many([(address, data)])

    def read_many(self, runs: Sequence[tuple[RemoteAddress, int]]) -> list[bytes]:
        """Each of the pieces, with as few system calls as possible."""
        buffer = bytearray(sum(size for _, size in runs))
        self.read_into(buffer, runs)
        found, at = [], 0
        for _, size in runs:
            found.append(bytes(buffer[at : at + size]))
            at += size
        return found

    def read_into(self, buffer: bytearray | memoryview, runs: Iterable[tuple[RemoteAddress, int]]) -> None:
        """All pieces, one behind the other, into a buffer of ours that has the room."""
        if len(buffer):
            self._transfer("process_vm_readv", buffer, list(runs))

    def write_many(self, runs: Sequence[tuple[RemoteAddress, bytes]]) -> None:
        """Each of the pieces, with as few system calls as possible."""
        data = bytearray().join(content for _, content in runs)
        if data:
            self._transfer("process_vm_writev", data, [(address, len(content)) for address, content in runs])

    def force_write(self, address: RemoteAddress, data: bytes) -> None:
        """Also where the task may not write: a private page becomes a copy, as for a breakpoint (proc_pid_mem(5))."""
        if self._mem < 0:
            self._mem = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        done = 0
        while done < len(data):
            written = os.pwrite(self._mem, data[done:], address + done)
            if not written:  # it has no memory any more (mem_rw(), fs/proc/base.c)
                raise ProcessLookupError(errno.ESRCH, f"write to the memory of {self.pid}: {os.strerror(errno.ESRCH)}")
            done += written

    def _transfer(self, name: str, buffer: bytearray | memoryview, runs: list[tuple[RemoteAddress, int]]) -> None:
        call = getattr(_libc, name)
        ours = _ffi.from_buffer(buffer)
        at = int(_ffi.cast("uintptr_t", ours))
        local: Any = _ffi.new("struct iovec *")
        index = skipped = 0  # runs that are done, bytes of the next one that are
        while index < len(runs):
            batch = runs[index : index + IOV_MAX]
            vector = array("Q", chain.from_iterable(batch))  # quicker than cffi's conversion by a factor of ten
            vector[0] += skipped
            vector[1] -= skipped
            remote: Any = _ffi.from_buffer("struct iovec[]", vector)
            wanted = sum(size for _, size in batch) - skipped
            local.base, local.length = at, wanted
            got = call(self.pid, local, 1, remote, len(batch), 0)
            if got < 0 or (got == 0 and wanted):
                number = _ffi.errno if got < 0 else errno.EFAULT
                where = f" at {batch[0][0] + skipped:#x}" if number == errno.EFAULT else ""
                raise OSError(number, f"{name} of {self.pid}{where}: {os.strerror(number)}")
            # A page that is not there ends the transfer early; going on from it tells which one it is.
            at += got
            got += skipped
            skipped = 0
            for _, size in batch:
                if got < size:
                    skipped = got
                    break
                got -= size
                index += 1

    def close(self) -> None:
        """Let go of /proc/PID/mem."""
        if self._mem >= 0:
            os.close(self._mem)
            self._mem = -1

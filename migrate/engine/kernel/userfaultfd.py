"""userfaultfd(2) as a tracker of writes: asynchronous write protection, where the kernel itself lifts the protection
of a page that is written to and nobody has to answer ("userfaultfd: UFFD_FEATURE_WP_ASYNC", 6.7)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

UFFD_API = 0xAA
UFFD_USER_MODE_ONLY = 1
UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_REGISTER_MODE_WP = 1 << 1

# _IOWR(0xAA, 0x3F, struct uffdio_api), _IOWR(0xAA, 0x00, struct uffdio_register), _IOR(0xAA, 0x01, struct uffdio_range)
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
API = struct.Struct("<QQQ")  # struct uffdio_api: api, features, ioctls
REGISTER = struct.Struct("<QQQQ")  # struct uffdio_register: start, len, mode, ioctls
RANGE = struct.Struct("<QQ")

CREATE_FLAGS = UFFD_USER_MODE_ONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A task without privileges may make one with UFFD_USER_MODE_ONLY alone (vm.unprivileged_userfaultfd is 0 by
default). It only forbids to *handle* faults of the kernel; those under WP_ASYNC are never handed to anybody, so that
a read(2) into a protected page is tracked and does not fail (measured on 6.18)."""

TRACKING_FEATURES = (
    UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | UFFD_FEATURE_WP_UNPOPULATED
    | UFFD_FEATURE_WP_ASYNC
)


def enable_tracking(fd: int) -> bool:
    """The handshake on a new userfaultfd, for asynchronous write protection of all kinds of memory. False: this
    kernel has not got it (EINVAL for an unknown feature); the descriptor is of no use then. Works from any process
    that holds it."""
    try:
        fcntl.ioctl(fd, UFFDIO_API, bytearray(API.pack(UFFD_API, TRACKING_FEATURES, 0)), True)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def register(fd: int, start: int, end: int) -> None:
    """All VMAs in [start, end) of the address space that the userfaultfd was made in; those already registered stay
    as they are, holes are passed over.

    OSError: EPERM for a mapping that can never be written (a shared one of a file opened for reading), EBUSY if the
    VMA has another userfaultfd, EINVAL if there is no VMA at all or it is MAP_DROPPABLE, ENOMEM if the address space
    is gone.
    """
    fcntl.ioctl(fd, UFFDIO_REGISTER, REGISTER.pack(start, end - start, UFFDIO_REGISTER_MODE_WP, 0))


def unregister(fd: int, start: int, end: int) -> None:
    """The opposite; protection is lifted. (Closing the last descriptor does it for all.)"""
    fcntl.ioctl(fd, UFFDIO_UNREGISTER, RANGE.pack(start, end - start))

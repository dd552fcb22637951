"""System V shared memory, semaphores and message queues (sysvipc(7)) that belong to the processes that move.

They come into an IPC namespace of their own there (ipc_namespaces(7)): every id and key is free in it, nobody else can
take one in between, and all of it goes with the last process of it, so that nothing is left by a roll-back of whatever
kind. The ids are chosen by /proc/sys/kernel/{shm,sem,msg}_next_id (CONFIG_CHECKPOINT_RESTORE).

The first of the processes makes everything: its number is what the kernel notes as creator and last user. Segments are
made while the processes still run on the source, for their contents travel with the memory (`kinds.sysv_memory`); sets
and queues at the end. What is taken away from a semaphore when a process ends (SEM_UNDO) each process notes itself.

Not kept: the times of the last operations, and whose they were.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from migrate.engine.kinds.placing import AT_FDCWD
from migrate.engine.program import Program, Results, Slot

CLONE_NEWIPC = 0x08000000  # unshare(2)
IPC_PRIVATE, IPC_CREAT, IPC_EXCL, IPC_NOWAIT = 0, 0o1000, 0o2000, 0o4000  # linux/ipc.h
IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
SHM_LOCK = 11  # linux/shm.h
GETPID, GETALL, SETALL, SEM_UNDO = 11, 13, 17, 0x1000  # linux/sem.h
MSG_COPY = 0o40000  # linux/msg.h
SEMVMX = 32767  # the largest value of a semaphore
QBYTES_AT = 88  # in struct msqid64_ds (asm-generic/msgbuf.h), of 120 bytes
LIMITS = (
    *("kernel/shmmax", "kernel/shmall", "kernel/shmmni", "kernel/shm_rmid_forced", "kernel/sem"),
    *("kernel/msgmax", "kernel/msgmnb", "kernel/msgmni"),
    *("fs/mqueue/queues_max", "fs/mqueue/msg_max", "fs/mqueue/msgsize_max"),
    *("fs/mqueue/msg_default", "fs/mqueue/msgsize_default"),
)
"""Files of /proc/sys that belong to an IPC namespace."""
_PERM = struct.Struct("<iIIIII24x")  # struct ipc64_perm (asm-generic/ipcbuf.h): key, uid, gid, cuid, cgid, mode
SEMBUF = struct.Struct("<Hhh")


@dataclass(frozen=True)
class Rights:
    """What all three have. ``key``: as ftok(3) makes it, 0 for IPC_PRIVATE; ``mode``: permissions alone; owner and
    creator."""

    key: int
    id: int
    mode: int
    uid: int
    gid: int
    cuid: int
    cgid: int

    def give(self, program: Program, kind: str, args: Sequence[int], label: str) -> None:
        """Make an object with this id, by its creator. ``kind``: shm, sem or msg; ``args``: of its get call, between
        key and flags."""
        path = program.string(f"/proc/sys/kernel/{kind}_next_id")
        fd = program.syscall("openat", AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, 0, label=f"{label}: id")
        text = str(self.id).encode()
        program.syscall("write", fd, program.data(text), len(text), label=f"{label}: id", expect=len(text))
        program.syscall("close", fd, label=label)
        key = self.key - (1 << 32) if self.key >> 31 else self.key
        own: Slot | None = None
        if self.cuid or self.cgid:
            own = program.syscall("getegid", label=label)
            program.syscall("setresgid", -1, self.cgid, -1, label=f"{label}: creator")
            program.syscall("setresuid", -1, self.cuid, -1, label=f"{label}: creator")
        flags = self.mode | IPC_CREAT | IPC_EXCL
        program.syscall(f"{kind}get", key, *args, flags, label=label, expect=self.id)
        if own is not None:
            program.syscall("setresuid", -1, 0, -1, label=label)
            program.syscall("setresgid", -1, own, -1, label=label)

    @property
    def packed(self) -> bytes:
        """For IPC_SET, which takes owner and permissions."""
        return _PERM.pack(0, self.uid, self.gid, 0, 0, self.mode)

    @property
    def given_away(self) -> bool:
        """Whether who has it is not who made it."""
        return (self.uid, self.gid) != (self.cuid, self.cgid)


@dataclass(frozen=True)
class Segment:
    """Shared memory, without its contents. ``size``: bytes; ``locked``: SHM_LOCK; ``removed``: it goes with the last
    that is attached to it (IPC_RMID)."""

    rights: Rights
    size: int
    locked: bool
    removed: bool

    @property
    def label(self) -> str:
        return f"System V shared memory {self.rights.id}"

    def same(self, other: Segment) -> bool:
        """Whether the other one is this one at another time."""
        mine, its = self.rights, other.rights
        return (mine.id, mine.cuid, mine.cgid, self.size) == (its.id, its.cuid, its.cgid, other.size)

    def make(self, program: Program) -> None:
        """Empty, and for root until `finish`."""
        self.rights.give(program, "shm", (self.size,), self.label)

    def remove(self, program: Program) -> None:
        """It has come and gone."""
        program.syscall("shmctl", self.rights.id, IPC_RMID, 0, label=f"{self.label}, which is gone")

    def finish(self, program: Program) -> None:
        """When all are attached."""
        id, label = self.rights.id, self.label
        if self.rights.given_away:
            program.syscall("shmctl", id, IPC_SET, program.data(self.rights.packed.ljust(112, b"\0")), label=label)
        if self.locked:
            program.syscall("shmctl", id, SHM_LOCK, 0, label=f"{label}: lock")
        if self.removed:
            program.syscall("shmctl", id, IPC_RMID, 0, label=f"{label}: to go with the last of them")


@dataclass(frozen=True)
class SemaphoreSet:
    """``values``: of each semaphore."""

    rights: Rights
    values: tuple[int, ...]

    def restore(self, program: Program) -> None:
        """With its values."""
        id, label = self.rights.id, f"System V semaphores {self.rights.id}"
        self.rights.give(program, "sem", (len(self.values),), label)
        values = program.data(struct.pack(f"<{len(self.values)}H", *self.values))
        program.syscall("semctl", id, 0, SETALL, values, label=f"{label}: values")
        if self.rights.given_away:
            program.syscall("semctl", id, 0, IPC_SET, program.data(self.rights.packed.ljust(104, b"\0")), label=label)


@dataclass(frozen=True)
class Message:
    """``type``: mtype of msgsnd(2)."""

    type: int
    content: bytes


@dataclass(frozen=True)
class MessageQueue:
    """``room``: bytes that it may hold (msg_qbytes)."""

    rights: Rights
    room: int
    messages: tuple[Message, ...]

    def restore(self, program: Program) -> None:
        """With its messages."""
        id, label = self.rights.id, f"System V message queue {self.rights.id}"
        self.rights.give(program, "msg", (), label)
        settings = bytearray(self.rights.packed.ljust(120, b"\0"))
        struct.pack_into("<Q", settings, QBYTES_AT, self.room)
        program.syscall("msgctl", id, IPC_SET, program.data(bytes(settings)), label=f"{label}: size")
        for number, message in enumerate(self.messages):
            content = program.data(struct.pack("<q", message.type) + message.content)
            length, what = len(message.content), f"{label}: message {number}"
            program.syscall("msgsnd", id, content, length, IPC_NOWAIT, label=what)


@dataclass(frozen=True)
class Undo:
    """What one process gives back to a semaphore when it ends (semadj, semop(2)). ``value``: of the semaphore."""

    id: int
    number: int
    value: int
    adjustment: int

    def restore(self, program: Program) -> None:
        """By the process itself, when the semaphore has its value, which stays what it is."""
        steps: list[tuple[int, int]] = [(-self.value, 0)]
        left = self.adjustment
        while left:
            part = max(-SEMVMX, min(left, SEMVMX))
            steps += [(part, 0), (-part, SEM_UNDO)] if part > 0 else [(-part, SEM_UNDO), (part, 0)]
            left -= part
        steps.append((self.value, 0))
        raw = b"".join(SEMBUF.pack(self.number, by, flags | IPC_NOWAIT) for by, flags in steps if by)
        label = f"System V semaphores {self.id}: what number {self.number} gets back from it (SEM_UNDO)"
        program.syscall("semop", self.id, program.data(raw), len(raw) // SEMBUF.size, label=label)


@dataclass(frozen=True)
class Ipc:
    """All of it. ``limits``: of LIMITS those that the namespace of the source has, with their values; ``named``: there
    are POSIX message queues among the descriptors, whose names belong to the namespace, too; ``own``: they are in a
    namespace of their own already, whatever is in it."""

    limits: tuple[tuple[str, str], ...] = ()
    segments: tuple[Segment, ...] = ()
    sets: tuple[SemaphoreSet, ...] = ()
    queues: tuple[MessageQueue, ...] = ()
    named: bool = False
    own: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything that takes a namespace of their own."""
        return bool(self.segments or self.sets or self.queues or self.named or self.own)

    def restore(self, program: Program) -> None:
        """Sets and queues. By the first process, as root."""
        for each in self.sets:
            each.restore(program)
        for queue in self.queues:
            queue.restore(program)

    def finish(self, program: Program) -> None:
        """When all have attached what they were attached to."""
        for segment in self.segments:
            segment.finish(program)


def enter(program: Program, limits: Sequence[tuple[str, str]]) -> Callable[[Results], str]:
    """Whoever runs this, and the children that come, are in an IPC namespace of their own with these limits from then
    on; what stood in the way, in words, or nothing."""
    label = "IPC namespace"
    slots = {"unshare": program.syscall("unshare", CLONE_NEWIPC, label=label, ignore=True)}
    missing: dict[str, Slot] = {}  # may be: a kernel without POSIX message queues has no limits of such
    flags = os.O_WRONLY | os.O_CLOEXEC
    for name, value in limits:
        path = program.string(f"/proc/sys/{name}")
        fd = missing[name] = program.syscall("openat", AT_FDCWD, path, flags, 0, label=label, ignore=True)
        text = program.data(value.encode())
        slots[f"{name} = {value}"] = program.syscall("write", fd, text, text.size, label=label, ignore=True)
        program.syscall("close", fd, label=label, ignore=True)
    for kind in ("shm", "sem", "msg"):
        name = f"/proc/sys/kernel/{kind}_next_id"
        fd = slots[name] = program.syscall("openat", AT_FDCWD, program.string(name), flags, 0, label=label, ignore=True)
        program.syscall("close", fd, label=label, ignore=True)

    def decode(results: Results) -> str:
        absent = {name for name, slot in missing.items() if results.of(slot) == -errno.ENOENT}
        for name, slot in slots.items():
            if (result := results.of(slot)) < 0 and name.split(" ")[0] not in absent:
                return f"{name}: {os.strerror(-result)}"
        return ""

    return decode

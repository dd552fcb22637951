"""Which System V objects belong to the processes that move, and what is in them.

Nothing says so outright. What is counted as theirs:

- shared memory that one of them is attached to;
- semaphores and queues that one of them was the last to use (semctl(2) GETPID, of any of the set; msgctl(2) lspid and
  lrpid), or waits for as we look;
- all that there is, where they have an IPC namespace of their own (as they do after a move).

What somebody else uses as well is refused: more views of a segment than they have, a last user or somebody who waits
that lives and does not move. Not seen are semaphores and queues that nobody has used yet, or whose last user has ended.

An object is read by whoever may: its owner, or root (CAP_IPC_OWNER).
"""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from migrate.engine.kernel.fdcalls import set_namespace
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kernel.sysvipc import SHM_DEST, SHM_LOCKED, Listed, parse
from migrate.engine.kin import descendants
from migrate.engine.kinds import sysv
from migrate.engine.kinds.mqueue import PosixQueue
from migrate.engine.kinds.sysv import Ipc, Message, MessageQueue, Rights, Segment, SemaphoreSet
from migrate.engine.kinds.vma import SYSV, VMA
from migrate.engine.program import Program, Results
from migrate.errors import Failed, Problem
from migrate.pie import local
from migrate.pie.calls import Calls

LIMIT = 64 << 20  # bytes in one message queue
_WAITS = {NUMBERS[name]: kind for name, kind in
    (("semop", "sem"), ("semtimedop", "sem"), ("msgsnd", "msg"), ("msgrcv", "msg"))}  # fmt: skip
_STAY = "which stays behind"


class IpcReader:
    """Looks at them from outside, for the processes of one tree."""

    def __init__(self) -> None:
        self.found = Ipc()  # at the last look
        self.waited: set[tuple[str, int]] = set()  # kind and id of what one of them was seen to wait for
        self._named: list[PosixQueue] = []  # that have names
        self._elsewhere = False  # in another namespace than ours
        self._company: list[int] = []  # others that are in their namespace, which is not ours

    def look(
        self, pids: Sequence[int], spaces: Sequence[Sequence[VMA]], frozen: bool, named: Sequence[PosixQueue] = ()
    ) -> tuple[Ipc, list[Problem]]:
        """All of it, and why it cannot be moved. ``pids``: as we number them; ``spaces``: their memory; ``named``:
        queues among their descriptors. Unless they are ``frozen``, somebody may have come or gone between two looks:
        what only counting would tell is not told."""
        self._named = [queue for queue in named if not queue.deleted]
        attached: Counter[int] = Counter()
        for vmas in spaces:
            attached.update(v.backing.ino for v in vmas if v.backing is not None and v.backing.kind == SYSV)
        if not frozen:
            self.waited |= set(_waiting(pids))
        spaces_of = [_space(pid) for pid in pids]
        other = spaces_of[0] != _space("self")
        self._elsewhere = other
        if not frozen:
            self._company = _company(pids) if other else []  # before we are in it ourselves
        try:
            with _inside(pids[0]):
                alone = other and not self._company
                self.found, problems = _Look(pids, attached, self.waited, alone, frozen).all(bool(named), other)
        except PermissionError as error:
            if not attached and not named and not other:
                return Ipc(), []  # they may well have none
            what = f"System V objects that we may not look at ({error.strerror})"
            return Ipc(), [Problem(f"pid {pids[0]}", what, "run the source side as root")]
        if other and self._company:
            what = f"is in an IPC namespace ({spaces_of[0]}) that is not ours, with process {self._company[0]}, {_STAY}"
            problems.append(Problem(f"pid {pids[0]}", what, "end that one first, or run migrate inside (nsenter(1))"))
        for pid, space in zip(pids, spaces_of, strict=True):
            if space and space != spaces_of[0]:
                what = f"is in an IPC namespace ({space}) that process {pids[0]} is not in"
                problems.append(Problem(f"pid {pid}", what))
        return self.found, problems

    def segments(self, pid: int, vmas: Sequence[VMA]) -> tuple[Segment, ...]:
        """Those that ``pid`` is attached to, as it runs."""
        ids = {vma.backing.ino for vma in vmas if vma.backing is not None and vma.backing.kind == SYSV}
        if not ids:
            return ()
        with _inside(pid):
            return tuple(_segment(listed) for listed in _table("shm") if listed.id in ids)

    def remove(self) -> None:
        """They live elsewhere now, with all that was theirs. In a namespace of their own nothing is left anyway."""
        gone = self.found
        if self._elsewhere or not gone:
            return
        program = Program("System V objects that have moved")
        now = {kind: {each.id: _rights(each) for each in _table(kind)} for kind in ("shm", "sem", "msg")}
        moved: tuple[tuple[str, Sequence[Segment | SemaphoreSet | MessageQueue], tuple[int, ...]], ...] = (
            ("shm", [each for each in gone.segments if not each.removed], ()),
            ("sem", gone.sets, (0,)),
            ("msg", gone.queues, ()),
        )
        for kind, objects, between in moved:
            for each in objects:
                if now[kind].get(each.rights.id) == each.rights:
                    args = (each.rights.id, *between, sysv.IPC_RMID, 0)
                    program.syscall(f"{kind}ctl", *args, label=f"remove {kind} {each.rights.id}", errno_ok=errno.EINVAL)
        for queue in self._named:
            if _is_named(queue):
                program.syscall("mq_unlink", program.string(queue.name), label=f"remove message queue {queue.name}")
        results = local.run(program.link())
        if results.failed is not None:
            op, result = results.failed
            raise Failed(f"moved, but its System V objects are left here: {op.label}: {os.strerror(-result)}")


def _space(pid: int | str) -> str:
    """``ipc:[4026531839]``; empty where there are no such namespaces, or for one that has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/ipc")
    except FileNotFoundError:
        return ""


@contextmanager
def _inside(pid: int) -> Iterator[None]:
    """In the IPC namespace of that process."""
    if _space(pid) == _space("self"):
        yield
        return
    theirs, ours = (os.open(f"/proc/{who}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC) for who in (pid, "self"))
    try:
        set_namespace(theirs, sysv.CLONE_NEWIPC)
        try:
            yield
        finally:
            set_namespace(ours, sysv.CLONE_NEWIPC)
    finally:
        os.close(theirs)
        os.close(ours)


def _table(kind: str) -> list[Listed]:
    try:
        with open(f"/proc/sysvipc/{kind}") as file:
            return list(parse(kind, file.read()))
    except FileNotFoundError:  # a kernel without CONFIG_SYSVIPC
        return []


def _rights(listed: Listed) -> Rights:
    return Rights(
        listed.key, listed.id, listed.mode & 0o777, listed.uid, listed.gid, listed.cuid, listed.cgid
    )


def _segment(listed: Listed) -> Segment:
    return Segment(
        _rights(listed), listed.fields["size"], bool(listed.mode & SHM_LOCKED), bool(listed.mode & SHM_DEST)
    )


class _Look:
    def __init__(
        self,
        pids: Sequence[int],
        attached: Mapping[int, int],
        waited: Collection[tuple[str, int]],
        private: bool,
        frozen: bool,
    ) -> None:
        self.pids, self.attached, self.waited, self.private, self.frozen = pids, attached, waited, private, frozen
        self.problems: list[Problem] = []

    def all(self, named: bool, own: bool) -> tuple[Ipc, list[Problem]]:
        """``named``, ``own``: see `Ipc`."""
        segments = tuple(self._segments())
        sets = tuple(self._sets())
        queues = tuple(self._queues())
        found = Ipc((), segments, sets, queues, named, own)
        if not found:
            return found, self.problems
        if (sets or queues) and not self.frozen:
            ours = {("sem", each.rights.id) for each in sets} | {("msg", each.rights.id) for each in queues}
            for kind, id in sorted(set(_waiting(_outsiders(self.pids))) & ours):
                self._refuse(f"{_NAMES[kind]} {id} that a process waits for {_STAY}")
        return replace(found, limits=_limits()), self.problems

    def _refuse(self, what: str, advice: str = "end that one first") -> None:
        self.problems.append(Problem(f"pid {self.pids[0]}", what, advice))

    def _segments(self) -> Iterator[Segment]:
        for listed in _table("shm"):
            views = self.attached.get(listed.id, 0)
            if views and listed.fields["nattch"] > views and (others := self._others_attached(listed.id)):
                what = f"System V shared memory {listed.id} is also attached by others outside the tree ({others})"
                self._refuse(what, "end those first")
            elif views:
                yield _segment(listed)
            elif self.private or listed.fields["cpid"] in self.pids:
                if not listed.fields["nattch"]:
                    what = f"System V shared memory {listed.id}, which it has made and nobody is attached to"
                    self._refuse(what, "have it attached or removed")

    def _others_attached(self, id: int) -> str:
        """In words; nothing if they cannot be found, and it may have been one of ours a moment ago."""
        space = os.readlink(f"/proc/{self.pids[0]}/ns/ipc")
        found = []
        for pid in _outsiders(self.pids):
            try:
                with open(f"/proc/{pid}/maps") as file:
                    words = [line.split() for line in file if "/SYSV" in line]
                if any(line[4] == str(id) for line in words) and os.readlink(f"/proc/{pid}/ns/ipc") == space:
                    found.append(pid)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        if found:
            return f"process {found[0]}" if len(found) == 1 else f"processes {', '.join(map(str, found))}"
        return "which we cannot see" if self.frozen else ""

    def _sets(self) -> Iterator[SemaphoreSet]:
        for listed in _table("sem"):
            id, count = listed.id, listed.fields["nsems"]
            calls = Calls()
            calls.add_table(count, (NUMBERS["semctl"], id, range(count), sysv.GETPID))
            users = calls.make()
            if not (self.private or ("sem", id) in self.waited or set(users) & set(self.pids)):
                continue
            if min(users) < 0:
                self._refuse(f"{_NAMES['sem']} {id} cannot be read ({os.strerror(-min(users))})", _AS_ROOT)
                continue
            for pid in sorted(set(users) - {0} - set(self.pids)):
                if _lives(pid) and not self.private:
                    self._refuse(f"{_NAMES['sem']} {id} that process {pid} uses too, {_STAY}")
            program = Program(f"values of semaphores {id}")
            values = program.space(2 * count)
            program.syscall("semctl", id, 0, sysv.GETALL, values, label="values")
            results = local.run(program.link())
            if results.failed is None:
                yield SemaphoreSet(_rights(listed), struct.unpack(f"<{count}H", results.bytes(values)))
            elif self.frozen:  # else it may have been removed meanwhile
                why = os.strerror(-results.failed[1])
                self._refuse(f"{_NAMES['sem']} {id} whose values cannot be read ({why})", _AS_ROOT)

    def _queues(self) -> Iterator[MessageQueue]:
        for listed in _table("msg"):
            users = {listed.fields["lspid"], listed.fields["lrpid"]}
            if not (self.private or ("msg", listed.id) in self.waited or users & set(self.pids)):
                continue
            for pid in sorted(users - {0} - set(self.pids)):
                if _lives(pid) and not self.private:
                    self._refuse(f"{_NAMES['msg']} {listed.id} that process {pid} uses too, {_STAY}")
            if listed.fields["cbytes"] > LIMIT:
                self._refuse(f"{_NAMES['msg']} {listed.id} with more than {LIMIT >> 20} MiB in it", "have it read")
                continue
            try:
                yield self._queue(listed)
            except OSError as error:
                why = error.strerror
                if error.errno in (errno.ENOSYS, errno.EINVAL):
                    why = "the kernel has no CONFIG_CHECKPOINT_RESTORE"
                self._refuse(f"{_NAMES['msg']} {listed.id} cannot be read ({why})", _AS_ROOT)

    def _queue(self, listed: Listed) -> MessageQueue:
        """Its messages stay in it (MSG_COPY, msgop(2))."""
        room, length = listed.fields["cbytes"], listed.fields["qnum"]
        program = Program(f"message queue {listed.id}")
        about, into = program.space(120), program.space(8 + room)
        program.syscall("msgctl", listed.id, sysv.IPC_STAT, about, label="size")
        results = _run(program)
        (size,) = struct.unpack_from("<Q", results.bytes(about), sysv.QBYTES_AT)
        messages = []
        for number in range(length):
            program = Program(f"message {number} of queue {listed.id}")
            into = program.space(8 + room)
            flags = sysv.IPC_NOWAIT | sysv.MSG_COPY
            slot = program.syscall("msgrcv", listed.id, into, room, number, flags, label="message")
            try:
                results = _run(program)
            except OSError as error:
                if error.errno == errno.ENOMSG and not self.frozen:
                    break  # received meanwhile
                raise
            raw = results.bytes(into)
            messages.append(Message(struct.unpack_from("<q", raw)[0], raw[8 : 8 + results.of(slot)]))
        return MessageQueue(_rights(listed), size, tuple(messages))


_NAMES = {"sem": "System V semaphores", "msg": "System V message queue"}
_AS_ROOT = "run the source side as root"


def _run(program: Program) -> Results:
    results = local.run(program.link())
    if results.failed is not None:
        raise OSError(-results.failed[1], os.strerror(-results.failed[1]))
    return results


def _limits() -> tuple[tuple[str, str], ...]:
    found = []
    for name in sysv.LIMITS:
        with suppress(FileNotFoundError):
            with open(f"/proc/sys/{name}") as file:
                found.append((name, " ".join(file.read().split())))
    return tuple(found)


def _outsiders(pids: Collection[int]) -> Iterator[int]:
    return (pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if pid not in pids)


def _is_named(queue: PosixQueue) -> bool:
    """Whether its name here still leads to it."""
    program = Program("a message queue by its name")
    flags = os.O_RDONLY | os.O_CLOEXEC
    slot = program.syscall("mq_open", program.string(queue.name), flags, 0, 0, label="open", ignore=True)
    fd = local.run(program.link()).of(slot)
    if fd < 0:
        return False
    try:
        found = os.fstat(fd)
        return (found.st_dev, found.st_ino) == queue.key
    finally:
        os.close(fd)


def _company(pids: Sequence[int]) -> list[int]:
    """Who else is in their IPC namespace, but for an overseer that stays for as long as they live, and for what they
    have just started."""
    theirs, found = _space(pids[0]), []
    for pid in _outsiders(pids):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if _space(pid) == theirs and pid not in descendants(pids[0]):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if not file.read().startswith(b"migrate-overseer\0"):
                        found.append(pid)
    return found


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _waiting(pids: Iterator[int] | Sequence[int]) -> Iterator[tuple[str, int]]:
    """Kind and id of what their threads wait for (proc_pid_syscall(5)). Those that we may not look at are left out."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for tid in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{tid}/syscall") as file:
                    number, _, rest = file.read().partition(" ")
                if number.isdecimal() and (kind := _WAITS.get(int(number))) is not None:
                    yield kind, int(rest.split()[0], 16)

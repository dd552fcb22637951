"""Who a thread is: user and group ids, capabilities, securebits, no_new_privs (credentials(7), capabilities(7)).

Threads have their own credentials; libc keeps them alike, the kernel does not. They are read from status in
/proc/PID/task/TID, the only place that shows the bounding and the ambient set in one piece, in about 12 us; in the task
they would be 82 calls. The securebits alone are asked for in the task.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from migrate.engine.kernel.prctl import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_GET_SECUREBITS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECUREBITS,
)
from migrate.engine.kernel.procformat import ProcFormatError, numbers
from migrate.engine.program import Buffer, Program, Results
from migrate.errors import Problem

CAP_SETPCAP = 8
SECBIT_NO_SETUID_FIXUP = 1 << 2
_LOCKED = 0xAA  # the odd bits: each makes the one below it final
_CAP_HEADER = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, the calling thread
_CAP_DATA = struct.Struct("<6I")  # effective, permitted, inheritable of caps 0 to 31, then of 32 to 63
_CHANGES_NOTHING = (1 << 64) - 1  # as an id for setfsuid: no valid one, so only the answer counts
EINVAL = 22


@dataclass(frozen=True)
class Credentials:
    """Capability sets are bit masks. Ids are those of the task's user namespace when the reader shares it."""

    uids: tuple[int, int, int, int]  # real, effective, saved, file system
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool
    securebits: int  # SECBIT_KEEP_CAPS (prctl PR_SET_KEEPCAPS) is one of them

    @classmethod
    def collect(cls, program: Program) -> Callable[[Results, bytes], Credentials]:
        """One op; the decoder also takes the content of the thread's /proc status."""
        slot = program.syscall("prctl", PR_GET_SECUREBITS, 0, 0, 0, 0, label="securebits")
        return lambda results, status: cls.from_status(status, results.of(slot))

    @classmethod
    def from_status(cls, status: bytes, securebits: int) -> Credentials:
        """From the text of status. Threads of a process mostly have the same ones: only the lines that count are cut
        out, and looked up before they are parsed (2 us instead of 40)."""
        try:
            ids = status.index(b"\nUid:\t")
            caps = status.index(b"\nCapInh:", ids)
            return _parse(
                status[ids : status.index(b"\nFDSize:", ids)],
                status[status.index(b"\nGroups:", ids) : status.index(b"\nNStgid:", ids)],
                status[caps : status.index(b"\nSeccomp", caps)],
                securebits,
            )
        except ValueError:
            raise ProcFormatError("status", "the lines of the credentials are not where they were") from None

    def problems(self, where: str, bounding: int, securebits: int = 0) -> list[Problem]:
        """What the destination cannot give. ``bounding``, ``securebits``: of the agent there. A capability outside of
        its bounding set cannot be had again, not even by root (capabilities(7))."""
        found = []
        missing = (self.permitted | self.inheritable) & ~bounding
        if missing:
            what = f"has capabilities that the destination's root lacks: {_names(missing)}"
            found.append(Problem(where, what, "connect as a fuller root"))
        changed = (self.securebits ^ securebits) & (securebits & _LOCKED | (securebits & _LOCKED) >> 1)
        if changed:
            what = f"securebits are {self.securebits:#x}, and locked as {securebits:#x} at the destination"
            found.append(Problem(where, what))
        return found

    def warnings(self, where: str, bounding: int) -> list[str]:
        """A capability that it has not, but could get by executing a file that grants it, is less of a loss."""
        missing = self.bounding & ~(bounding | self.permitted | self.inheritable)
        if not missing:
            return []
        return [f"{where}: the destination's bounding set lacks {_names(missing)}, so its programs cannot gain that"]

    def restore(self, program: Program, bounding: int = (1 << 64) - 1, held: int = 0) -> None:
        """Run by the thread itself, as the last thing that needs root. ``bounding``: what the restorer may have;
        ``held``: what it must keep for a while yet, see `capset`.

        Order: ids while we may, without the kernel taking capabilities away for it (NO_SETUID_FIXUP); inheritable
        before the bounding set shrinks, as it may hold what that does not (cap_capset, security/commoncap.c); ambient
        before securebits that forbid to raise it; permitted and effective last. Changing ids clears dumpable and the
        parent-death signal (commit_creds, kernel/cred.c), so those are restored after this.
        """
        fixup = "securebits, for the change of ids"
        program.syscall("prctl", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0, label=fixup)
        groups = program.data(struct.pack(f"<{len(self.groups)}I", *self.groups))
        program.syscall("setgroups", len(self.groups), groups if self.groups else 0, label="groups")
        program.syscall("setresgid", *self.gids[:3], label="group ids")
        program.syscall("setresuid", *self.uids[:3], label="user ids")
        for call, ids in (("setfsgid", self.gids), ("setfsuid", self.uids)):
            # The file-system id has followed the effective one; the call gives back the old one, never an error.
            if ids[3] != ids[1]:
                program.syscall(call, ids[3], label=call[3:], expect=ids[1])
                program.syscall(call, _CHANGES_NOTHING, label=call[3:], expect=ids[3])
        full = self.permitted | held | 1 << CAP_SETPCAP
        _capset(program, full, full, self.inheritable, "inheritable capabilities")
        program.syscall("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, label="ambient capabilities")
        for cap in _bits(self.ambient):
            label = f"ambient {capability(cap)}"
            program.syscall("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0, label=label)
        for cap in _bits(bounding & ~self.bounding):
            # EINVAL: a capability that this kernel does not know
            program.syscall("prctl", PR_CAPBSET_DROP, cap, 0, 0, 0, label=f"drop {capability(cap)}", errno_ok=EINVAL)
        program.syscall("prctl", PR_SET_SECUREBITS, self.securebits, 0, 0, 0, label="securebits")
        _capset(program, self.effective | held, self.permitted | held, self.inheritable, "capabilities")
        if self.no_new_privs:
            program.syscall("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, label="no_new_privs")

    def capset(self, base: int) -> tuple[bytes, tuple[int, int]]:
        """What must lie at the address ``base``, and the arguments of the capset(2) that takes away what was held. To
        have less changes nothing else (commit_creds, kernel/cred.c)."""
        sets = _cap_data(self.effective, self.permitted, self.inheritable)
        return _CAP_HEADER + sets, (base, base + len(_CAP_HEADER))


@lru_cache(maxsize=64)
def _parse(ids: bytes, groups: bytes, caps: bytes, securebits: int) -> Credentials:
    lines = (ids + groups + caps).decode().strip("\n").split("\n")
    fields = dict(line.split(":", 1) for line in lines)

    def four(name: str) -> tuple[int, int, int, int]:
        real, effective, saved, file_system = numbers(fields[name], 10, name, "status")
        return real, effective, saved, file_system

    inheritable, permitted, effective, bounding, ambient = (
        int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    )
    return Credentials(
        four("Uid"),
        four("Gid"),
        numbers(fields["Groups"], 10, "Groups", "status"),
        inheritable,
        permitted,
        effective,
        bounding,
        ambient,
        fields["NoNewPrivs"].strip() != "0",
        securebits,
    )


def _capset(program: Program, effective: int, permitted: int, inheritable: int, label: str) -> None:
    data: Buffer = program.data(_cap_data(effective, permitted, inheritable))
    program.syscall("capset", program.data(_CAP_HEADER), data, label=label)


def _cap_data(*sets: int) -> bytes:
    return _CAP_DATA.pack(*(mask & 0xFFFF_FFFF for mask in sets), *(mask >> 32 for mask in sets))


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(64) if mask >> bit & 1]


def _names(mask: int) -> str:
    return ", ".join(capability(cap) for cap in _bits(mask))


def capability(number: int) -> str:
    """CAP_NET_ADMIN and so on (linux/capability.h)."""
    return f"CAP_{_KNOWN[number]}" if number < len(_KNOWN) else f"capability {number}"


_KNOWN = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN"
    " SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE"
    " MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()

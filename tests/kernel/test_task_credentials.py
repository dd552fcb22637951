"""Ids, capabilities, securebits: taken on in one process, put back in another, compared line by line in status."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine.kernel import prctl as pr
from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kernel.status import status
from migrate.engine.kinds.credentials import Credentials, capability
from migrate.engine.program import Program
from tests.kernel.actors import Actor, collect, destination, seen, syscall

LINES = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
CHOWN, KILL, SETGID, SETUID, SETPCAP, NET_BIND, NET_ADMIN, SYS_PTRACE = 0, 5, 6, 7, 8, 10, 12, 19


def _capset(effective: int, permitted: int, inheritable: int) -> None:
    masks = (effective, permitted, inheritable)
    data = struct.pack("<6I", *(mask & 0xFFFFFFFF for mask in masks), *(mask >> 32 for mask in masks))
    syscall("capset", struct.pack("<Ii", 0x20080522, 0), data)


def _prctl(*args: int) -> None:
    syscall("prctl", *args, *(0,) * (5 - len(args)))


def root() -> None:
    """As it is."""


def user() -> None:
    """What a login does."""
    os.setgroups([1000, 27, 4_000_000_000])
    os.setresgid(1000, 1000, 1000)
    os.setresuid(1000, 1000, 1000)


def all_ids_differ() -> None:
    """File-system ids of their own too; real 5, effective 6, saved 7."""
    os.setgroups([])
    os.setresgid(15, 16, 17)
    syscall("setfsgid", 18)
    _prctl(pr.PR_SET_SECUREBITS, 1 << 2)
    os.setresuid(5, 6, 7)
    syscall("setfsuid", 8)
    _prctl(pr.PR_SET_SECUREBITS, 0)


def setuid_program() -> None:
    """Effective root, real user: passwd."""
    os.setresuid(1000, 0, 0)


def service() -> None:
    """A user with one ambient capability, as systemd starts it; all others are out of reach."""
    keep = 1 << NET_BIND
    _prctl(pr.PR_SET_SECUREBITS, 1 << 4)
    for cap in range(41):
        if not keep >> cap & 1:
            _prctl(pr.PR_CAPBSET_DROP, cap)
    os.setgroups([33])
    os.setresgid(33, 33, 33)
    os.setresuid(33, 33, 33)
    _capset(keep, keep, keep)
    _prctl(pr.PR_CAP_AMBIENT, pr.PR_CAP_AMBIENT_RAISE, NET_BIND)
    _prctl(pr.PR_SET_NO_NEW_PRIVS, 1)


def odd_sets() -> None:
    """Inheritable beyond the bounding set, effective less than permitted, securebits locked."""
    _capset((1 << 41) - 1 & ~(1 << 24), (1 << 41) - 1 & ~(1 << 24), 1 << KILL | 1 << NET_ADMIN)
    _prctl(pr.PR_CAPBSET_DROP, KILL)
    _prctl(pr.PR_CAP_AMBIENT, pr.PR_CAP_AMBIENT_RAISE, NET_ADMIN)
    _prctl(pr.PR_SET_SECUREBITS, 0x2F | 1 << 6 | 1 << 7)  # NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, all locked
    _capset(1 << CHOWN, 1 << CHOWN | 1 << SYS_PTRACE | 1 << NET_ADMIN, 1 << KILL | 1 << NET_ADMIN)


def keep_caps() -> None:
    """PR_SET_KEEPCAPS, in a root without SETPCAP."""
    _prctl(8, 1)
    allowed = (1 << 41) - 1 & ~(1 << 24 | 1 << SETPCAP)
    _capset(allowed, allowed, 0)


def nothing_left() -> None:
    """Root by number only."""
    _capset(0, 0, 0)
    _prctl(pr.PR_SET_NO_NEW_PRIVS, 1)


@pytest.mark.parametrize(
    "kind", [root, user, all_ids_differ, setuid_program, service, odd_sets, keep_caps, nothing_left]
)
def test_credentials(kind: object) -> None:
    with Actor() as source, Actor() as there:
        assert callable(kind)
        source.call(kind)
        before = collect(source).thread.credentials
        program = Program("credentials")
        before.restore(program, destination().bounding)
        there.run(program)
        assert collect(there).thread.credentials == before
        assert seen(there, *LINES) == seen(source, *LINES)
        assert before.problems("pid 1", destination().bounding) == []


def test_without_knowing_the_bounding_set() -> None:
    """Capabilities that no kernel knows yet are dropped in vain, without harm."""
    with Actor() as source, Actor() as there:
        source.call(service)
        program = Program("credentials")
        collect(source).thread.credentials.restore(program)
        there.run(program)
        assert seen(there, *LINES) == seen(source, *LINES)


def test_from_status_agrees_with_the_whole_parser() -> None:
    with Actor() as source:
        source.call(service)
        text = Path(f"/proc/{source.pid}/status").read_bytes()
        whole, found = status(text.decode()), Credentials.from_status(text, 0x15)
        assert found == Credentials(
            whole.uids, whole.gids, whole.groups, whole.cap_inh, whole.cap_prm, whole.cap_eff, whole.cap_bnd,
            whole.cap_amb, whole.no_new_privs, 0x15,
        )  # fmt: skip


def test_a_capability_that_the_destination_lacks() -> None:
    with Actor() as source:
        credentials = collect(source).thread.credentials
        found = credentials.problems("pid 1", credentials.bounding & ~(1 << NET_ADMIN | 1 << 40))
        assert [problem.what for problem in found] == [
            "has capabilities that the destination's root lacks: CAP_NET_ADMIN, CAP_CHECKPOINT_RESTORE"
        ]
        bare = replace(credentials, permitted=0, effective=0, inheritable=0)
        assert bare.problems("pid 1", 0) == []
        assert bare.warnings("pid 1", credentials.bounding) == []
        assert "lacks CAP_NET_ADMIN," in bare.warnings("pid 1", credentials.bounding & ~(1 << NET_ADMIN))[0]
        assert credentials.problems("pid 1", credentials.bounding, 0x02)[0].what.startswith("securebits are 0x0")
        assert replace(credentials, securebits=0x02).problems("pid 1", credentials.bounding, 0x02) == []


def test_names_of_capabilities() -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    words = [line.split() for line in header.splitlines() if line.startswith("#define CAP_")]
    known = {int(line[2]): line[1] for line in words if len(line) > 2 and line[2].isdigit()}
    assert len(known) >= 41
    assert {number: capability(number) for number in known} == known
    assert capability(63) == "capability 63"


def test_a_status_without_the_lines() -> None:
    with pytest.raises(ProcFormatError):
        Credentials.from_status(b"Name:\tx\n", 0)

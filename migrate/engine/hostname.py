"""UTS namespaces (uts_namespaces(7)): the host and domain name of a tree that has names of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from migrate.engine.kernel.fdcalls import set_namespace
from migrate.engine.kernel.proc import Proc
from migrate.engine.program import Program

_CLONE_NEWUTS = 0x04000000
_NAMES = Path("/proc/sys/kernel/hostname"), Path("/proc/sys/kernel/domainname")  # of whoever reads them


@dataclass(frozen=True)
class HostNames:
    """As gethostname(2) and getdomainname(2) give them; "(none)" is what Linux calls a domain that was never set."""

    host: bytes
    domain: bytes

    @classmethod
    def of(cls, proc: Proc) -> HostNames | None:
        """None: in our own namespace. PermissionError when we may not enter it."""
        theirs, ours = proc.stat("ns/uts"), os.stat("/proc/thread-self/ns/uts")
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            return None
        home, there = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC), proc.open("ns/uts")
        try:
            set_namespace(there, _CLONE_NEWUTS)
            try:
                host, domain = (path.read_bytes().removesuffix(b"\n") for path in _NAMES)
            finally:
                set_namespace(home, _CLONE_NEWUTS)
        finally:
            os.close(there)
            os.close(home)
        return cls(host, domain)

    def enter(self) -> Program:
        """Whoever runs this, and what it makes, is in a namespace with these names. When the first op fails, as where
        CAP_SYS_ADMIN is missing or user.max_uts_namespaces is used up, the others must not be run: they would be about
        the host."""
        program = Program("a UTS namespace")
        label = f"UTS namespace with the name {self.host.decode('utf-8', 'replace')}"
        program.syscall("unshare", _CLONE_NEWUTS, label=label)
        for call, name in (("sethostname", self.host), ("setdomainname", self.domain)):
            program.syscall(call, program.data(name), len(name), label=label)
        return program

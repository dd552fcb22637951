"""What fs_struct holds: current directory, root, umask. Restored after the descriptors, whose paths are those of the
root that the mount namespace has."""

from __future__ import annotations

from dataclasses import dataclass

from migrate.engine.kernel import status
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds.needs import DIRECTORY, FileNeed
from migrate.engine.kinds.opened import Dump, DumpOptions
from migrate.engine.program import Program
from migrate.errors import Problem


@dataclass(frozen=True)
class FsState:
    """``cwd`` and ``root`` as seen from the root of the mount namespace."""

    cwd: str
    root: str
    umask: int

    @classmethod
    def dump(cls, proc: Proc, pidfd: int, options: DumpOptions | None = None) -> tuple[FsState | None, list[Problem]]:
        """None when there are problems."""
        dump = Dump(proc, pidfd, options or DumpOptions())
        cwd, root = proc.link("cwd"), proc.link("root")
        umask = status.umask(proc.text("status"))
        if dump.prefix and root != "/":
            dump.refuse("root", f"chroot ({root}) in another mount namespace")
        for name, path in (("cwd", cwd), ("root", root)):
            if path != "/" and not dump.leads_to(path, proc.stat(name)):
                dump.refuse(
                    name, f"directory that its path does not lead to ({path})", "it was deleted, or mounted over"
                )
        if umask is None:
            dump.refuse("umask", "process that is ending")
        if dump.problems or umask is None:
            return None, dump.problems
        return cls(cwd, root, umask), []

    def needs(self, where: str) -> list[FileNeed]:
        """``where``: "pid 812"."""
        return [
            FileNeed(f"{where} cwd", self.cwd, DIRECTORY),
            *([FileNeed(f"{where} root", self.root, DIRECTORY)] if self.root != "/" else []),
        ]

    def restore(self, program: Program) -> None:
        """Last of all that opens by path; chroot needs CAP_SYS_CHROOT, so before the credentials."""
        program.syscall("chdir", program.string(self.cwd), label=f"cwd ({self.cwd})")
        if self.root != "/":  # which leaves the current directory where it is (chroot(2))
            program.syscall("chroot", program.string(self.root), label=f"root ({self.root})")
        program.syscall("umask", self.umask, label="umask")

"""Numbers of pseudo-terminals on the destination, and a directory of terminals for those whose numbers are taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from migrate.engine.kinds.needs import TERMINAL, FileNeed
from migrate.engine.kinds.placing import Context, Placing
from migrate.engine.kinds.terminal import DIRECTORY, occupied, open_master, path
from migrate.engine.program import Program

_MS_NOSUID, _MS_NOEXEC = 0x2, 0x8  # mount(2)
# As Debian mounts it. /dev/ptmx leads into the directory beside it (devpts_mntget(), fs/devpts/inode.c).
_OPTIONS = "newinstance,ptmxmode=0666,mode=0620,gid=5"


def numbers(needs: Iterable[FileNeed]) -> set[int]:
    """Those that are wanted."""
    return occupied([need.path for need in needs if need.kind == TERMINAL])


def without(taken: Collection[str]) -> frozenset[str]:
    """Names that are taken where there is another directory of terminals."""
    return frozenset(taken) - {path(index) for index in occupied(taken)}


def own() -> Program:
    """In the overseer, which has a mount namespace of its own: an empty /dev/pts, in which every number is free."""
    program = Program("a directory of terminals")
    kind, where = program.string("devpts"), program.string(DIRECTORY)
    flags = _MS_NOSUID | _MS_NOEXEC
    program.syscall("mount", kind, where, kind, flags, program.string(_OPTIONS), label=f"a {DIRECTORY} of its own")
    return program


def make(program: Program, index: int, number: int, context: Context) -> None:
    """A master at ``number``, in a process that has nothing open but what ``context`` tells."""
    placing = Placing(program, context, ())
    placing.label = f"terminal {path(index)}"
    made = open_master(placing, index, occupied(context.taken) | placing.terminals)
    placing.place(made, {number: True})

"""Children: a process has them where it was born, and its waits would find none of them elsewhere.

They move with it (see `migrate.engine.kin`); those that do not are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.stat import words
from migrate.engine.program import Program, Results
from migrate.errors import Problem

P_ALL = 0
WNOHANG, WEXITED, WNOWAIT, WALL = 1, 4, 0x01000000, 0x40000000
ECHILD = 10


def seen(proc: Proc) -> list[int]:
    """Children of all of its threads, ended ones that it has not waited for included. None where the kernel does not
    tell (proc_pid_children(5), CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for tid in proc.tids():
        try:
            found += map(int, proc.text(f"task/{tid}/children").split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended since, or there is no such file
    return found


def ended(pid: int) -> bool:
    """Whether it is a zombie: nothing is left of it but what its parent may look at."""
    try:
        with Proc(pid) as proc:
            return words(proc.text("stat"))[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ask(program: Program) -> Callable[[Results], bool]:
    """One op, which leaves all of them as they are; the decoder tells whether there are any (waitid(2))."""
    options = WEXITED | WNOHANG | WNOWAIT | WALL
    slot = program.syscall("waitid", P_ALL, 0, 0, options, 0, label="children", errno_ok=ECHILD)
    return lambda results: results.of(slot) == 0


def refusal(where: str, pids: Iterable[int]) -> Problem:
    """``pids``: those that are known."""
    numbers = ", ".join(map(str, pids))
    what = f"it has children{f' ({numbers})' if numbers else ''}, and they would stay behind"
    return Problem(where, what, "try again when they have ended")

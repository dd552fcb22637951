"""What each of the processes gives back to System V semaphores when it ends, asked of them while they stand still."""

from __future__ import annotations

from collections.abc import Sequence

from migrate.engine.aftercare import check
from migrate.engine.dump import Dumper
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.kinds.sysv import SemaphoreSet, Undo
from migrate.engine.kinds.sysv_undo import Search
from migrate.engine.shares import UNDO
from migrate.engine.sharing import Sharing
from migrate.errors import Problem
from migrate.pie.calls import Calls


def undos_of(
    dumpers: Sequence[Dumper], sets: Sequence[SemaphoreSet], sharing: Sharing
) -> tuple[list[tuple[Undo, ...]], list[Problem]]:
    """Of each process, and why it cannot be moved: the lists of what is given back are shared in an unusual way. A list
    that several have (CLONE_SYSVSEM) is that of the first of them."""
    found: list[tuple[Undo, ...]] = []
    for position, dumper in enumerate(dumpers if sets else ()):
        if sharing.group(position, UNDO)[0] != position:
            found.append(())
            continue
        search, pid = Search(sets), dumper.proc.pid
        while (program := search.program()) is not None:
            results = dumper.parasite().run({pid: program})[pid]
            check(results, program.title, pid)
            search.learn(results)
        found.append(tuple(search.found))
    problems = []
    for position, (dumper, its) in enumerate(zip(dumpers, found, strict=False)):
        if not its:
            continue
        pid, tids = dumper.proc.pid, dumper.tracee.tids
        before = [each.proc.pid for each, more in zip(dumpers[:position], found, strict=False) if more]
        calls = Calls()
        for other in (*tids, *before):
            calls.add(NUMBERS["kcmp"], pid, other, UNDO.kcmp)
        results_of = dict(zip((*tids, *before), calls.make(), strict=True))
        for tid in tids:
            if results_of[tid] != 0:
                problems.append(Problem(f"thread {tid}", "it gives back to semaphores by itself (SEM_UNDO)"))
        for other in before:
            if results_of[other] == 0:
                what = f"it has come to share its {UNDO.words} with process {other}"
                problems.append(Problem(f"pid {pid}", what))
    return found, problems

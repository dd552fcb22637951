"""Processes that live in one address space (CLONE_VM), as far as one of them has to mind the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

from migrate.engine.dump import Dumper
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import children
from migrate.engine.shares import MEMORY, compare
from migrate.engine.tracee.detour import ProcessEnded
from migrate.engine.tracee.tree import Tracee


@contextmanager
def at_rest(house: Sequence[Dumper], family: Collection[int]) -> Iterator[None]:
    """All are stopped that could write to the memory of the first of ``house``, those included that have come since.
    ``family``: all processes that are known. Raises ProcessEnded when the first has ended."""
    coming, known, still = list(house), {*family}, list[Dumper]()
    with ExitStack() as stopped:
        while coming:
            for each in coming:
                try:
                    each.stop()
                except ProcessEnded:
                    if each is house[0]:
                        raise
                    continue
                stopped.callback(each.resume)
                still.append(each)
            # Where there was one only, it is begun anew with the next one anyway.
            met = {pid for each in still for pid in _children(each)} - known if len(family) > 1 else set()
            known |= met
            coming = []
            for pid in met:
                if not children.ended(pid) and _lives_there(house[0].proc.pid, pid):
                    with suppress(FileNotFoundError, ProcessLookupError):
                        coming.append(stopped.enter_context(_newcomer(pid)))
        yield


@contextmanager
def _newcomer(pid: int) -> Iterator[Dumper]:
    with Proc(pid) as proc, Tracee(pid) as tracee, closing(Dumper(proc, tracee)) as dumper:
        yield dumper


def _children(dumper: Dumper) -> set[int]:
    try:
        return {*children.seen(dumper.proc)}
    except (FileNotFoundError, ProcessLookupError):
        return set()  # it has ended, and has none any more


def _lives_there(owner: int, pid: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):  # the memory decides on who may look
        return compare(owner, pid, MEMORY) == 0
    return False

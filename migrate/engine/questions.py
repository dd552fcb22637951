"""What only the task itself can tell: programs that ask it, run by the parasite in each of its threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from migrate.engine.kernel.accounting import timers
from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import address_space, children, task
from migrate.engine.kinds.mm import MM
from migrate.engine.kinds.vma import PROT_EXEC, VMA
from migrate.engine.program import Linked, Program, Results
from migrate.engine.standing import host, own_pid
from migrate.engine.texts import Texts
from migrate.engine.tracee.tree import ThreadState


@dataclass(frozen=True)
class ToMain:
    """The program that also answers for the process, and what its answers mean. ``keys``: it allocates protection
    keys, and frees them again, which changes PKRU."""

    key: tuple[object, ...]
    linked: Linked
    process: Callable[[Results, task.ProcessOutside], task.Process]
    mm: Callable[[Results, str], MM]
    has_children: Callable[[Results], bool]
    has_segments: Callable[[Results], bool]
    keys: bool


class Questions:
    """To one process. ``to_others``: to its threads but the first."""

    def __init__(self, proc: Proc, texts: Texts, compat: bool) -> None:
        """``compat``: it is of 32 bits."""
        self._proc, self._texts, self._compat = proc, texts, compat
        self.to_others, self.thread = _to_a_thread(compat)
        self._to_main: ToMain | None = None

    def has_children(self, answers: Results) -> bool:
        """Of the first thread, to `to_main`."""
        return self._to_main is not None and self._to_main.has_children(answers)

    def has_segments(self, answers: Results) -> bool:
        """Of the first thread, to `to_main`: segments for all threads (modify_ldt(2))."""
        return self._to_main is not None and self._to_main.has_segments(answers)

    def to_main(self, listed: bytes, own: int, states: Sequence[ThreadState], vmas: Sequence[VMA]) -> ToMain:
        """To the first thread; linked anew only when it must be another. ``listed``: /proc/PID/timers; ``own``: its
        number as it sees it; ``vmas``: those that it answers for."""
        flush = [vma for vma in vmas if vma.shared]
        keys = any(vma.pkey and vma.prot != PROT_EXEC for vma in vmas)
        # A timer for a thread that has ended goes on and notifies nobody; it cannot be made so again (timer_create(2)).
        living = {state.tid for state in states}
        found = [
            timer._replace(notify="none", thread=False) if timer.thread and timer.target not in living else timer
            for timer in timers(listed.decode())
        ]
        key = (tuple(found), tuple(flush), keys)
        if self._to_main is None or self._to_main.key != key:
            program = Program(f"what pid {own} knows of itself")
            # First what every thread is asked: so the same decoder fits.
            task.collect_thread(program, _host(), self._compat)
            tids = None
            if listed and own != self._proc.pid:
                tids = {state.tid: own_pid(self._texts.read(state.tid, "status")) for state in states}
            process = task.collect_process(program, found, tids)
            mm = MM.collect(program, self._proc, keys)
            born = children.ask(program)
            local = program.syscall("modify_ldt", 0, program.space(8), 8, label="segments of its own", ignore=True)
            address_space.compile_flush(program, flush)
            segments = lambda results: results.of(local) > 0  # noqa: E731
            self._to_main = ToMain(key, program.link(), process, mm, born, segments, keys)
        return self._to_main


@cache
def _host() -> task.Host:
    return host()


@cache
def _to_a_thread(compat: bool) -> tuple[Linked, Callable[[Results, task.ThreadOutside], task.Thread]]:
    program = Program("what a thread knows of itself")
    decode = task.collect_thread(program, _host(), compat)
    return program.link(), decode

"""Procedures on several stopped processes in step: one journey for the trips of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from migrate.engine.program import OpKind, Program, Results, Slot
from migrate.engine.tracee.detour import ParasiteFailed
from migrate.engine.tracee.injection import Injection
from migrate.engine.tracee.instep import Steps, in_step
from migrate.engine.tracee.tree import Tracee
from migrate.errors import Problem, Refused
from migrate.pie import blob
from tests.kernel.tracees import ROUNDS, Victim, running
from tests.victims import Victims

COUNT = 3


@contextmanager
def _several(victims: Victims) -> Iterator[list[tuple[Victim, Tracee]]]:
    """Victims that look after themselves, and find nothing in the end."""
    with ExitStack() as stack:
        people = [stack.enter_context(running(victims("watchful"))) for _ in range(COUNT)]
        before = [victim.maps() for victim in people]
        with ExitStack() as tracees:
            yield [(victim, tracees.enter_context(Tracee(victim.pid))) for victim in people]
        assert [victim.maps() for victim in people] == before
        for victim in people:
            victim.finish()


def _asked(injection: Injection, program: Program) -> Steps[dict[int, Results]]:
    parasite = yield from injection.entering()
    return (yield from parasite.running(dict.fromkeys(injection.tracee.tids, program)))


def _who() -> tuple[Program, Slot, Slot]:
    program = Program("who")
    return program, program.syscall("getpid", label="process"), program.syscall("gettid", label="thread")


def test_each_thread_of_each_process_answers(victims: Victims) -> None:
    program, process, thread = _who()
    with _several(victims) as people:
        for _ in range(ROUNDS):
            injections = []
            for _, tracee in people:
                tracee.stop()
                injections.append(Injection(tracee, blob()))
            answers = in_step([_asked(injection, program) for injection in injections])
            for (victim, tracee), injection, answer in zip(people, injections, answers, strict=True):
                assert not isinstance(answer, Refused) and set(answer) == set(tracee.tids)
                assert all(a.of(process) == victim.pid and a.of(thread) == tid for tid, a in answer.items())
                injection.__exit__(None, None, None)
                tracee.resume()


def test_what_one_is_refused_for_does_not_stop_the_others(victims: Victims) -> None:
    program, process, _ = _who()

    def refused(injection: Injection) -> Steps[dict[int, Results]]:
        yield from _asked(injection, program)
        raise Refused([Problem("pid 1", "a reason")])

    with _several(victims) as people:
        injections = []
        for _, tracee in people:
            tracee.stop()
            injections.append(Injection(tracee, blob()))
        first, *others = injections
        answers = in_step([refused(first), *(_asked(each, program) for each in others)])
        assert isinstance(answers[0], Refused) and "a reason" in str(answers[0])
        for (victim, _), answer in list(zip(people, answers, strict=True))[1:]:
            assert not isinstance(answer, Refused) and answer[victim.pid].of(process) == victim.pid
        for (_, tracee), injection in zip(people, injections, strict=True):
            injection.__exit__(None, None, None)
            tracee.resume()


def test_a_crash_in_one_brings_all_of_them_home(victims: Victims) -> None:
    program, _, _ = _who()
    crashing = Program("crashing")
    crashing.op(OpKind.COPY, 0, 0, 8, label="to nowhere")
    with _several(victims) as people:
        for _ in range(ROUNDS):
            injections = []
            states = []
            for _, tracee in people:
                tracee.stop()
                states.append(tracee.threads())
                injections.append(Injection(tracee, blob()))
            told: list[str] = []

            def telling(injection: Injection, what: Program, told: list[str] = told) -> Steps[dict[int, Results]]:
                try:
                    return (yield from _asked(injection, what))
                except ParasiteFailed as error:
                    told.append(str(error))
                    raise

            programs = [program, crashing, program]
            with pytest.raises(ParasiteFailed, match="SIGSEGV"):
                in_step([telling(*each) for each in zip(injections, programs, strict=True)])
            assert len(told) == COUNT
            for (_, tracee), injection, state in zip(people, injections, states, strict=True):
                injection.__exit__(None, None, None)
                assert tracee.threads() == state
                tracee.resume()

"""Resource limits, put back in another process and compared with /proc/PID/limits."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

from migrate.engine.kernel.accounting import RLIM_INFINITY
from migrate.engine.kinds.limits import Limits
from migrate.engine.program import Program
from tests.kernel.actors import Actor, collect, destination


def _set() -> None:
    for number in range(16):
        _, hard = resource.getrlimit(number)
        high = 1 << 40 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(number, (min(high // 2 + number, high), high))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _text(actor: Actor) -> str:
    return Path(f"/proc/{actor.pid}/limits").read_text()


def test_limits() -> None:
    with Actor() as source, Actor() as there:
        source.call(_set)
        before = collect(source).process.limits
        assert before.limits[resource.RLIMIT_CORE] == (0, 0)
        assert before.limits[resource.RLIMIT_FSIZE][0] == 1 << 30
        assert _text(source) != _text(there)
        program = Program("limits")
        before.restore(program, destination().limits)
        there.run(program)
        assert _text(there) == _text(source)
        assert collect(there).process.limits == before


def test_unlimited_is_kept() -> None:
    with Actor() as source:
        text = _text(source)
        unlimited = {n for n, pair in enumerate(collect(source).process.limits.limits) if pair[1] == RLIM_INFINITY}
        hard = [line.split()[-2] for line in text.splitlines() if line.startswith("Max") and line.split()[-1].isalpha()]
        assert len(unlimited) == hard.count("unlimited")
        assert unlimited


def test_raised_limits_only_rise() -> None:
    """Before the descriptors: the soft limit must be there, and nothing else may have shrunk yet."""
    with Actor() as source, Actor() as there:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        source.call(_set)
        there.call(resource.setrlimit, resource.RLIMIT_NOFILE, (64, hard))
        now = Limits.from_text(_text(there))
        wanted = collect(source).process.limits
        program = Program("limits")
        wanted.restore_raised(program, now)
        there.run(program)
        after = Limits.from_text(_text(there)).limits
        for (old, _), (new, _), (want, _) in zip(now.limits, after, wanted.limits, strict=True):
            assert new == max(old, want)


def test_problems() -> None:
    here = destination().limits
    low = replace(here, limits=((5, 10), *here.limits[1:]))
    assert low.problems("pid 1", here, can_raise=False) == []
    found = here.problems("pid 1", low, can_raise=False)
    assert [problem.what for problem in found] == [
        "max cpu time: hard limit unlimited, at the destination 10, which cannot be raised without CAP_SYS_RESOURCE"
    ]
    assert here.problems("pid 1", low, can_raise=True) == []

"""Programs of 32 bits (ia32): the same victims, compiled for that."""

from __future__ import annotations

import shlex
import time

import pytest

from tests import moves
from tests.migration.journey import Journeys
from tests.tasks import wait_until
from tests.victims import IA32

VSYSCALL = ("flags of ffffffffff600000", "maps ffffffffff600000")
"""Not mapped for what execve(2) has started as a program of 32 bits; what has become one has it."""
HELD = "fd \\d+ settime flags"  # see tests/migration/test_moves_descriptors.py
NAMED = "maps [0-9a-f]+"  # of shared memory with a name, which is another file there
SAME = ("altstack", "actions", "pending", "robust", "grows", "locks", "restless")
DIFFERS, MISSING = {"MIGRATE_FAULT": "vdso:differs"}, {"MIGRATE_FAULT": "vdso:missing"}


@pytest.mark.parametrize("victim", [*SAME, "numbered 4", "buffer 16 0 1000", "clocks 3", "asleep 3000"])
def test_as_it_was(journeys: Journeys, victim: str) -> None:
    name, *args = victim.split()
    journeys.start(name, *args, flags=IA32).go(ignore=VSYSCALL)


@pytest.mark.parametrize(("victim", "ignore"), [
    ("events", HELD), ("timers", r"(status|thread \d+) (ShdPnd|SigPnd)"), ("posixmemory", NAMED),
])
def test_but_for_what_is_different_anywhere(journeys: Journeys, victim: str, ignore: str) -> None:
    journeys.start(victim, flags=IA32).go(ignore=(*VSYSCALL, ignore))


@pytest.mark.parametrize("args", ["2 0", "3 50000"])
def test_the_vdso(journeys: Journeys, args: str) -> None:
    """Threads that do nothing but call it, and handlers that interrupt them: to another kernel, on to one, and home."""
    journey = journeys.start("insider", *args.split(), flags=IA32)
    seen = []
    for env in (None, DIFFERS, DIFFERS, None, DIFFERS, None):
        journey.env = env
        journey.move("--no-converge", "continue", look=False)
        assert journey.outcomes[-1].report["vdso"] == ("proxy" if env else "remap")
        seen.append([line for line in journey.maps if "[vsyscall]" not in line])
        journey.turn()
    assert seen[0] == seen[3] == seen[5] and seen[1] == seen[2] == seen[4]
    journey.tell()
    journey.verdict()


def test_handlers_return_from_where_they_were_called(journeys: Journeys) -> None:
    """By way of the vDSO: by that which the kernel knew of then, and which is not there any more."""
    journey = journeys.start("lingers", flags=IA32)
    for env in (DIFFERS, DIFFERS, None, DIFFERS, DIFFERS, None):
        journey.env = env
        journey.move("--no-converge", "continue", look=False)
        time.sleep(0.3)
        journey.must_live()
        journey.turn()
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize(("env", "why"), [
    (MISSING, "handlers return by way of the vDSO"), ({"MIGRATE_FAULT": "ia32:missing"}, "runs no such program"),
])
def test_where_it_could_not_live(journeys: Journeys, env: dict[str, str], why: str) -> None:
    journey = journeys.start("numbered", flags=IA32)
    outcome = moves.finish(
        moves.start(journey.pair.a, journey.task.pid, journey.pair.b.destination, env=env)
    )
    assert outcome.code == 3 and why in outcome.err and "nothing was changed" in outcome.err
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize("victim", ["forks", "heirs 4 3"])
def test_with_children(journeys: Journeys, victim: str) -> None:
    name, *args = victim.split()
    journey = journeys.start(name, *args, flags=IA32)
    journey.move("--no-converge", "continue", look=False)
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize("script", [
    "{0} & {1} & wait",  # a shell of 64 bits with one of each
    "{1} & (sleep 0.3; exec {0}) & wait",  # and one that becomes another while it is copied
])
def test_among_others(journeys: Journeys, script: str) -> None:
    """A shell, and below it one of 32 bits and one of 64."""
    commands = [shlex.join([journeys.victims("clocks", *flags), "1"]) for flags in (IA32, ())]
    journey = journeys.run("both", ["sh", "-c", script.format(*commands)])
    wait_until("both", lambda: journey.out.count("ready") == 2)
    journey.move("--no-converge", "continue", look=False)
    journey.turn()
    journey.move("--no-converge", "continue", look=False)
    journey.tell()
    journey.task.wait_gone(20)
    assert journey.out.count("pass") == 2 and not journey.err, journey.complaint

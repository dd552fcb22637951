"""What cannot be moved is refused by name before anything is touched, with every reason at once: exit code 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import hosts, moves, observe
from tests.hosts import Pair
from tests.logins import USERS
from tests.migration.journey import Journey, Journeys
from tests.moves import PROGRAM, Outcome
from tests.victims import Victims


def _attempt(pair: Pair, pid: int, *options: str) -> Outcome:
    return moves.finish(moves.start(pair.a, pid, pair.b.destination, *options))


def _refused(journey: Journey, *reasons: str) -> None:
    """An AssertionError unless all the reasons are given, nothing is different, and the process passes."""
    pair = journey.pair
    before, there = observe.snapshot(journey.task.outer), pair.b.pids()
    outcome = _attempt(pair, journey.task.pid)
    _says(outcome, *reasons)
    assert not observe.compare(before, observe.snapshot(journey.task.outer))
    assert not set(pair.b.pids()) - set(there)
    journey.tell()
    journey.verdict()


def _says(outcome: Outcome, *reasons: str) -> None:
    assert outcome.code == 3 and not outcome.report["ok"], outcome.err
    for reason in reasons:
        assert reason in outcome.report["error"] and reason in outcome.err, f"{reason!r} is not in\n{outcome.err}"
    assert "nothing was changed" in outcome.err


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("socket", "fd 5: socket"),
        ("terminal", "fd 5: terminal whose lines somebody else edits"),
        ("io_uring", "fd 5: io_uring instance"),
        ("userfaultfd", "fd 5: userfaultfd"),
        ("hugetlb", "huge"),
        ("listener", "fd 5: seccomp notification descriptor"),
        ("notifying", "has a seccomp filter that asks another process"),
        ("segments", "has segments of its own (modify_ldt(2))"),
    ],
)
def test_what_cannot_be_moved(journeys: Journeys, kind: str, reason: str) -> None:
    _refused(journeys.start("refused", kind), reason)


def test_every_reason_at_once(journeys: Journeys) -> None:
    kinds = ("socket", "terminal", "io_uring", "userfaultfd", "hugetlb", "listener")
    reasons = ("fd 5: socket", "fd 6: terminal", "fd 7: io_uring", "fd 8: userfaultfd", "huge", "fd 9: seccomp")
    _refused(journeys.start("refused", *kinds), *reasons)


def test_traced_already(journeys: Journeys) -> None:
    journey = journeys.start("refused")
    tracer = journeys.start("refused", f"traces={journey.task.pid}")
    _refused(journey, f"traced already, by process {tracer.task.pid}")


def test_a_zombie(journeys: Journeys) -> None:
    journey = journeys.start("refused", "zombie")
    zombie = int(journey.out.split()[0])
    _says(_attempt(journeys.pair, zombie), f"zombie: it has ended, and its parent {journey.task.pid}")
    journey.tell()
    journey.verdict()


def test_no_such_process(two_hosts: Pair) -> None:
    _says(_attempt(two_hosts, 4_000_000), "process 4000000: there is no such process")


def test_its_own_ancestor(two_hosts: Pair) -> None:
    pair = two_hosts
    script = f'{PROGRAM} -F {pair.a.ssh_config} $$ {pair.b.destination}; echo "exit $?"'
    done = pair.a.run(["sh", "-c", script])
    assert done.stdout.endswith("exit 3\n"), done.stderr
    assert "this program was started by it" in done.stderr


def test_another_users_process(journeys: Journeys) -> None:
    """By a user who can log in there as root, but has no right to touch the process here. Only to read all files: the
    interpreter of the tests may lie in a home that is closed to others, and the key does."""
    pair, guest = journeys.pair, USERS["guest"]
    journey = journeys.start("refused")
    before = observe.snapshot(journey.task.outer)
    home = pair.a.directory / "home" / "guest"
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    as_guest = ["setpriv", f"--reuid={guest}", f"--regid={guest}", "--clear-groups", *reading]
    environment = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache")}
    command = [*as_guest, PROGRAM, "-F", str(pair.a.ssh_config), str(journey.task.pid), pair.b.destination]
    done = pair.a.run(command, check=False, env=environment)
    assert done.returncode == 3, done.stderr
    assert f"it belongs to user 0, we run as user {guest}" in done.stderr
    assert not observe.compare(before, observe.snapshot(journey.task.outer))
    journey.tell()
    journey.verdict()


def test_files_that_are_not_there(victims: Victims) -> None:
    """All of them are listed, in one go with the other reasons."""
    with hosts.two_hosts() as pair:
        hidden = pair.directory / "hidden"
        hidden.mkdir()
        pair.b.run(["mount", "-t", "tmpfs", "hidden", str(hidden)])
        names = [str(hidden / "first-missing"), str(hidden / "second-missing")]
        for name in names:
            Path(name).write_text("text\n")
        _refused(Journeys(pair, victims).start("refused", *names, "socket"), *names, "fd 7: socket")
        pair.finish()

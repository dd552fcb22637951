"""Open files of every kind move, with offsets, contents, flags and what is shared; streams lead elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import moves
from tests.hosts import Host
from tests.migration.journey import Journeys
from tests.tasks import Task, children, wait_until


def test_regular_files_directories_devices_and_locks(journeys: Journeys) -> None:
    journeys.start("opened").go()


def test_pipes_and_fifos(journeys: Journeys) -> None:
    # On one kernel a FIFO of a shared file system is one pipe for both hosts; so each host has its own.
    for host in (journeys.pair.a, journeys.pair.b):
        host.run(["sh", "-c", "rm -f /run/fifo && mkfifo -m 600 /run/fifo && touch -d @0 /run/fifo"])
    journeys.start("pipes", "/run/fifo").go(ignore=[r"fd \d+ ino"])


def test_descriptors_that_wait_for_events(journeys: Journeys) -> None:
    # The periodic timer goes on, and was set by its deadline, so that nothing is lost that it counts (README).
    journeys.start("events").go(ignore=[r"fd \d+ ticks", "fd 8 settime flags"])


def test_a_root_directory_of_its_own(journeys: Journeys) -> None:
    jail = journeys.pair.directory / "jail"
    (jail / "work").mkdir(parents=True)
    shutil.copy(journeys.victims("robust", "-static"), jail / "victim")
    argv = ["chroot", str(jail), "/victim"]
    journey = journeys.run("jailed", argv, env={"VICTIM_GO": "/go"}, cwd=str(jail / "work"))
    wait_until("jailed ready", lambda: "ready" in journey.out)
    journey.move()
    (jail / "go").touch()
    journey.verdict()


@contextmanager
def _piped(journeys: Journeys) -> Iterator[tuple[Task, Path]]:
    """A victim whose output is a pipe of ours, and the file that tells it to go."""
    go = journeys.pair.directory / f"piped-{os.urandom(4).hex()}"
    reading, writing = os.pipe()
    try:
        with open(reading, "rb", buffering=0) as output:
            env = {"VICTIM_GO": str(go)}
            task = journeys.pair.a.spawn([journeys.victims("robust")], stdout=writing, stderr=writing, env=env)
            assert output.read(100) == b"ready\n"
            yield task, go
    finally:
        os.close(writing)


def _links(task: Task) -> list[str]:
    return [os.readlink(f"/proc/{task.outer}/fd/{number}") for number in range(3)]


def test_output_to_a_pipe_goes_to_a_log(journeys: Journeys) -> None:
    with _piped(journeys) as (task, go):
        moved, outcome = moves.move(journeys.pair, task)
    log = Path(outcome.report["stdio_log"])
    assert _links(moved) == ["/dev/null", str(log), str(log)]
    assert str(log) in outcome.err
    go.touch()
    moved.wait_gone()
    assert log.read_text() == "pass\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_output_to_a_named_file(journeys: Journeys) -> None:
    log = journeys.pair.directory / "named.log"
    log.write_text("before\n")
    with _piped(journeys) as (task, go):
        moved, _ = moves.move(journeys.pair, task, "--stdio", str(log))
    go.touch()
    moved.wait_gone()
    assert log.read_text() == "before\npass\n"


def test_output_to_null(journeys: Journeys) -> None:
    with _piped(journeys) as (task, go):
        moved, outcome = moves.move(journeys.pair, task, "--stdio", "null")
    assert _links(moved) == ["/dev/null"] * 3
    assert not outcome.report.get("stdio_log")
    go.touch()
    moved.wait_gone()


def test_a_terminal_is_left_behind(journeys: Journeys) -> None:
    pair = journeys.pair
    victim = journeys.victims("robust")
    script = journeys.run("script", ["script", "--quiet", "--flush", "--command", f"exec {victim}", "/dev/null"])
    wait_until("ready on a terminal", lambda: "ready" in script.out)
    inside = _victim_below(pair.a, script.task)
    assert _links(inside)[1].startswith("/dev/pts/")
    moved, outcome = moves.move(pair, inside)
    log = Path(outcome.report["stdio_log"])
    script.tell()
    moved.wait_gone()
    assert log.read_text() == "pass\n"
    script.task.wait_gone()


def _victim_below(host: Host, script: Task) -> Task:
    (outer,) = children(script.outer)
    task = Task(outer, host.inner_pid(outer))
    host.tasks.append(task)
    return task

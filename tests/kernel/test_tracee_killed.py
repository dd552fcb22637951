"""The tracer is killed at any moment; whoever it was looking at runs on and notices nothing."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback

import pytest

from migrate.engine.program import Program
from migrate.engine.tracee.injection import Injection
from migrate.engine.tracee.leftovers import cure, leftovers
from migrate.engine.tracee.tree import Tracee
from migrate.pie import blob
from tests.kernel.tracees import Victim, running
from tests.victims import Victims

KILLS = 200


def _look_for_ever(pid: int) -> None:
    with Tracee(pid) as tracee:
        while True:
            tracee.stop()
            with Injection(tracee, blob()) as parasite:
                for _ in range(3):
                    program = Program("who")
                    program.syscall("gettid", label="who")
                    parasite.run(dict.fromkeys(tracee.tids, program))
            tracee.resume()


def _kill_a_tracer(victim: Victim, after: float) -> None:
    child = os.fork()
    if not child:
        try:
            _look_for_ever(victim.pid)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the tracer ended by itself"
    assert victim.process.poll() is None, victim.process.communicate()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["watchful", "handlers", "queued"])
def test_killed_at_any_moment(victims: Victims, name: str) -> None:
    chance = random.Random(812)
    with running(victims(name)) as victim:
        for _ in range(KILLS):
            _kill_a_tracer(victim, chance.uniform(0.002, 0.03))
            assert victim.status("TracerPid") == "0"
            time.sleep(0.002)
            assert not victim.status("State").startswith(("T", "t"))
        # And nothing is in the way of the next one.
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            assert leftovers(victim.pid)
            assert cure(tracee) > 0
            assert not leftovers(victim.pid)
            with Injection(tracee, blob()) as parasite:
                program = Program("who")
                slot = program.syscall("getpid", label="who")
                assert parasite.run({victim.pid: program})[victim.pid].of(slot) == victim.pid
        if name == "queued":
            os.kill(victim.pid, signal.SIGTERM)
        victim.finish()


def test_a_sleep_keeps_its_deadline_through_it() -> None:
    """The parasite's way home without a tracer leaves the restart block alone."""
    start = time.monotonic()
    with running("sleep", "1.5", ready=False) as victim:
        time.sleep(0.05)
        while time.monotonic() - start < 1.2:
            _kill_a_tracer(victim, 0.01)
        victim.finish()
    assert 1.5 <= time.monotonic() - start < 1.9

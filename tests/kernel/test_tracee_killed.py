"""The tracer is killed at any moment; whoever it was looking at runs on and notices nothing."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable

import pytest

from migrate.engine.program import Program
from migrate.engine.tracee import ptrace
from migrate.engine.tracee.area import areas
from migrate.engine.tracee.injection import Injection
from migrate.engine.tracee.leftovers import cure
from migrate.engine.tracee.memory import Memory
from migrate.engine.tracee.tree import Tracee
from migrate.errors import Failed
from migrate.pie import blob
from tests.kernel.tracees import Victim, running
from tests.victims import Victims

KILLS = 200


def _look_for_ever(pid: int) -> None:
    with Tracee(pid) as tracee:
        while True:
            tracee.stop()
            try:
                with Injection(tracee, blob()) as parasite:
                    for _ in range(3):
                        program = Program("who")
                        program.syscall("gettid", label="who")
                        parasite.run(dict.fromkeys(tracee.tids, program))
            except Failed as error:
                if "still on its way home" not in str(error):
                    raise
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


def die_after(requests: int) -> None:
    """Have this process killed right behind its n-th request about the task."""
    left = requests

    def counting(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object) -> object:
            nonlocal left
            result = call(*args)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    setattr(ptrace, "_request", counting(ptrace._request))  # noqa: B010
    setattr(Memory, "_transfer", counting(Memory._transfer))  # noqa: B010
    setattr(Memory, "force_write", counting(Memory.force_write))  # noqa: B010


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["watchful", "handlers"])
def test_killed_after_every_single_request(victims: Victims, name: str) -> None:
    with running(victims(name)) as victim:
        for requests in range(1, 1000):
            child = os.fork()
            if not child:
                die_after(requests)
                try:
                    with Tracee(victim.pid) as tracee:
                        tracee.stop()
                        with Injection(tracee, blob()) as parasite:
                            program = Program("who")
                            program.syscall("gettid", label="who")
                            parasite.run(dict.fromkeys(tracee.tids, program))
                    os._exit(0)
                except Failed as error:
                    assert "still on its way home" in str(error)
                    os._exit(2)
                except BaseException:
                    traceback.print_exc()
                os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert victim.process.poll() is None, (requests, victim.process.communicate())
            if status == 0:
                break
            assert status in (-signal.SIGKILL, 2)
        assert requests > 40
        victim.finish()


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
            assert areas(tracee.memory)
            while not cure(tracee):
                tracee.resume()
                time.sleep(0.001)
                tracee.stop()
            assert not areas(tracee.memory)
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

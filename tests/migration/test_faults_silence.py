"""What neither fails nor answers: a cable that is pulled, a system call on the destination that never returns. The
process must not stand still for that, nor the command wait for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.migration.journey import Journeys
from tests.migration.launcher import Launcher
from tests.migration.repeater import repeater
from tests.migration.scene import FROZEN, POINTS, Stage, staged
from tests.tasks import wait_until

PAUSE = "34 "  # /proc/PID/syscall in pause(2), what a hanging op is
# After "sent" nothing is asked of the destination before COMMIT, whose answer then does not come.
ASKING = POINTS[: POINTS.index("sent") + 1]


@contextmanager
def stages(count: int, journeys: Journeys, start: Launcher, directory: Path) -> Iterator[list[Stage]]:
    """Several processes, for several migrations at once: all of them only wait."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            own = directory / str(number)
            own.mkdir()
            made.append(stack.enter_context(staged(journeys, start, own)))
        yield made


@pytest.mark.timeout(200)
def test_the_cable_is_pulled(journeys: Journeys, start: Launcher, tmp_path: Path) -> None:
    """In the frozen window what is allowed is what counts, and before it keepalives, five seconds apart. Nobody is
    told; what was sent last may arrive when the cable is in again, and what comes of that ends with its lease."""
    with stages(len(ASKING), journeys, start, tmp_path) as several:
        held = [stage.hold(point, fault="lease:is=3") for stage, point in zip(several, ASKING, strict=True)]
        journeys.pair.b.link_down()
        for hold, _ in held:
            hold.release()
        results = [run.wait() for _, run in held]
        journeys.pair.b.link_up()
        for point, result in zip(ASKING, results, strict=True):
            said = "did not answer within 8 s" if point in FROZEN else "Server not responding to keepalive"
            assert result.code == 5 and said in result.report["error"], (point, result)
        for stage in several:
            stage.untouched()


def hangs(stage: Stage) -> bool:
    """Whether the process that is being made of this one hangs. It has its number there too."""
    try:
        outer = stage.pair.b.host_pid(stage.journey.task.pid)
        return Path(f"/proc/{outer}/syscall").read_text().startswith(PAUSE)
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.timeout(200)
def test_the_restorer_hangs(journeys: Journeys, start: Launcher, tmp_path: Path) -> None:
    """In the overseer, in the process while it is laid out, in the frozen window; and the user who does not wait."""
    with stages(4, journeys, start, tmp_path) as several:
        pair, first = journeys.pair, several[0]
        with repeater(pair.a, first.journey.task.pid, pair.b) as again:
            laying_out = len(again.attempt("created:fail").ops) + 2
            restoring = len(again.attempt("frozen:fail").ops) + 10
        runs = [
            stage.launcher.start(*stage.command, fault=f"op:{index}:hang")
            for stage, index in zip(several, (3, laying_out, restoring, laying_out), strict=True)
        ]
        wait_until("the restorer hanging", lambda: hangs(several[3]))
        runs[3].signal(signal.SIGINT)
        results = [run.wait() for run in runs]
        hung = "hangs: no answer within 30 s"
        said = (f"the overseer {hung}", f"the restorer of restoree 1 {hung}", "did not answer within 8 s")
        for result, words in zip(results[:3], said, strict=True):
            assert result.code == 5 and words in result.report["error"], result
        assert results[3].code == 130, results[3]
        for stage in several:
            stage.untouched()

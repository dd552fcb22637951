"""Who belongs to a tree is found out anew at each stop of all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from migrate.engine.roster import Roster
from migrate.errors import KinChanged
from tests.tasks import children, status_field, wait_until

EXECUTES = (
    "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); "
    "signal.sigwait([signal.SIGUSR1]); os.execvp('sleep', ['sleep', '1000'])"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {EXECUTES!r}])"


@pytest.mark.parametrize("program", [PARENT, EXECUTES], ids=["a child", "alone"])
def test_another_program_is_executed_right_before_the_stop(program: str) -> None:
    """What is known of the memory of the last one does not hold for it."""
    with subprocess.Popen([sys.executable, "-c", program]) as first:
        wait_until("there", lambda: program is EXECUTES or bool(children(first.pid)))
        pid = next(iter(children(first.pid)), first.pid)
        wait_until("waiting", lambda: _sleeps(pid))
        roster = Roster(first.pid, lambda *frame: None)

        def hold() -> None:
            roster.hold(lambda member: member.dumper.stop_outside())
            roster.let_go()

        try:
            hold()
            os.kill(pid, signal.SIGUSR1)
            wait_until("executed", lambda: status_field(pid, "Name") == ["sleep"])
            if roster.several:
                hold()
                assert roster.change.renewed == {1} and not roster.change.gone
            else:
                with pytest.raises(KinChanged, match="has executed another program meanwhile"):
                    hold()
        finally:
            roster.close()
            first.kill()
            if pid != first.pid:
                os.kill(pid, signal.SIGKILL)
                first.wait()
                with suppress(ChildProcessError):  # its parent was faster
                    os.waitpid(pid, 0)  # tests adopt orphans


LOOP = "for i in $(seq 100000); do /bin/true; done"


@pytest.mark.parametrize("program", [LOOP, f"({LOOP}) | cat"], ids=["the first", "another"])
def test_children_come_and_go_while_they_are_met(program: str) -> None:
    """One that has just been born is no reason against a move: it joins in."""
    with subprocess.Popen(["bash", "-c", program], start_new_session=True) as first:
        try:
            wait_until("children", lambda: bool(children(first.pid)))
            for _ in range(20):
                roster = Roster(first.pid, lambda *frame: None)
                try:
                    seen = [member.preview for member in roster.all if member.preview is not None]
                    assert len(seen) == len(roster.all)
                    assert not [problem for each in seen for problem in each.problems]
                finally:
                    roster.close()
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # tests adopt orphans
                while True:
                    os.waitpid(-first.pid, 0)


def _sleeps(pid: int) -> bool:
    with open(f"/proc/{pid}/wchan") as file:
        return "sigtimedwait" in file.read()

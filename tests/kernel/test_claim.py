"""One migration of a process at a time (migrate/engine/tracee/claim.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from migrate.engine.kernel.proc import Proc
from migrate.engine.tracee.claim import Claim, claimed
from migrate.errors import Refused

ID = "261121100343-51d09f3a2c1b"
HOLDER = """
import sys, os
from migrate.engine.kernel.proc import Proc
from migrate.engine.tracee.claim import Claim
claim = Claim(Proc(int(sys.argv[1])))
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process() -> Iterator[Proc]:
    with subprocess.Popen(["sleep", "1000"]) as child, Proc(child.pid) as proc:
        yield proc
        child.kill()


def test_who_has_it_is_told_and_when_he_ends_it_is_free(process: Proc) -> None:
    command = [sys.executable, "-c", HOLDER, str(process.pid), ID]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"claimed\n"
        problem = claimed(process)
        # what is named is the command, of which the holder of the lock is an agent: here this test
        assert problem is not None and f"by migration {ID} of process {os.getpid()} since " in problem.what
        with pytest.raises(Refused, match=f"it is being moved already, by migration {ID} of process"):
            Claim(process)
        holder.kill()
    assert claimed(process) is None
    Claim(process).close()
    Claim(process).close()


def test_ones_own_is_no_problem(process: Proc) -> None:
    claim = Claim(process)
    assert claimed(process) is None
    with pytest.raises(Refused, match="it is being moved already"):
        Claim(process)
    claim.close()


def test_who_may_not_trace_it_cannot_claim_it(process: Proc) -> None:
    code = f"import os; os.setgid(4242); os.setuid(4242); os.open('/proc/{process.pid}/mem', os.O_RDONLY)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PermissionError" in done.stderr, done

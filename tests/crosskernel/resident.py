"""`migrate` on an endpoint, started and imported once: an emulated machine takes a quarter of a minute for that.

Every command is a process of its own all the same, forked as tests/migration/launcher.py has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.migration.launcher import ROOT

_PROGRAM = f"import sys; sys.path.insert(0, {ROOT!r}); from tests.migration.launcher import main; main()"
COMMAND = (sys.executable, "-c", _PROGRAM)
"""What takes the commands there."""


class Resident:
    """The test's end. Commands run one after the other."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        """``command``: what runs `COMMAND` there, from here; ``directory``: for the output, which both sides have under
        that name."""
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._out, self._err = directory / "migrate.out", directory / "migrate.err"

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """``migrate argv…``, to its end."""
        for path in (self._out, self._err):
            path.write_bytes(b"")
        pid = self._ask(argv=argv, env={}, out=str(self._out), err=str(self._err))
        code = self._ask(wait=pid)
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        return subprocess.CompletedProcess(argv, code, out, err)

    def _ask(self, **request: Any) -> int:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, f"what starts commands has ended: {self._server.wait(10)}"
        return int(json.loads(answer))

    def close(self) -> None:
        """It ends at the end of its input."""
        with self._server:
            assert self._server.stdin
            self._server.stdin.close()
            self._server.wait(60)

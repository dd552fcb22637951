"""The memory of a process that has ended is not there, and nobody waits for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from migrate.engine.kernel.maps import maps
from migrate.engine.tracee.memory import Memory, RemoteAddress
from tests.tasks import wait_until


@pytest.mark.parametrize(
    "touch",
    [
        lambda memory, place: memory.force_write(place, b"x"),
        lambda memory, place: memory.write(place, b"x"),
        lambda memory, place: memory.read(place, 1),
    ],
    ids=["force_write", "write", "read"],
)
def test_it_ends_in_between(touch: Callable[[Memory, RemoteAddress], object]) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        memory = Memory(process.pid)
        try:
            # until then its areas change
            wait_until("asleep", lambda: "nanosleep" in Path(f"/proc/{process.pid}/wchan").read_text())
            with open(f"/proc/{process.pid}/maps") as file:
                place = RemoteAddress(next(each for each in maps(file.read()) if each.path == "[stack]").start)
            memory.force_write(place, memory.read(place, 8))
            touch(memory, place)
            process.kill()
            process.wait()
            with pytest.raises(ProcessLookupError):
                touch(memory, place)
        finally:
            memory.close()
            process.kill()

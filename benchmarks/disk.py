"""Dumps and restores of 1 GiB on tmpfs, against cp(1) of a file that size and memcpy into fresh memory."""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.kernel.checkpoints import Job, dump, reap, restore
from tests.leaks import become_subreaper
from tests.tasks import wait_until

HERE = Path(__file__).parent
SIZE = 1 << 30
_PIECE = 1 << 24
_RUNS = 5


@contextmanager
def _process(own: Path) -> Iterator[Job]:
    """With that much memory, of random contents. ``own``: a directory that is not /dev/shm, where what it has mapped
    would be shared memory with a name, to be made anew."""
    binary, ready = own / "victim", own / "ready"
    if not binary.exists():
        subprocess.run(["gcc", "-O2", "-pthread", "-o", str(binary), str(HERE / "victim.c")], check=True)
    ready.write_bytes(bytes(4096))
    job = Job.start(str(binary), str(ready), str(SIZE >> 20), "0", "1", "0")
    try:
        wait_until("ready", lambda: ready.read_bytes()[0], 60)
        yield job
    finally:
        job.close()


def _copy(directory: Path) -> float:
    """Seconds that cp takes."""
    target = directory / "copy"
    begun = time.monotonic()
    subprocess.run(["cp", str(directory / "pages"), str(target)], check=True)
    taken = time.monotonic() - begun
    target.unlink()
    return taken


def _fill() -> float:
    """Seconds that memcpy into fresh memory takes."""
    piece = os.urandom(_PIECE)
    with mmap.mmap(-1, SIZE) as memory:
        begun = time.monotonic()
        for at in range(0, SIZE, _PIECE):
            memory[at : at + _PIECE] = piece
        return time.monotonic() - begun


def tables() -> Table:
    """One row a run, and the medians. Seconds; of a dump and a restore all that the command does but for its start."""
    table = Table(
        *("run", "cp", "dump", "ratio", "stopped ms", "memcpy", "pages read", "ratio", "restore"),
        title="1 GiB to tmpfs and back",
    )
    become_subreaper()  # who is restored becomes ours
    rows: list[list[float]] = []
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(dir="/dev/shm")
    scratch, own = Path(os.environ["XDG_STATE_HOME"]), Path(tempfile.mkdtemp())
    try:
        for number in range(_RUNS):
            row = _run(scratch, own)
            rows.append(row)
            table.add_row(str(number + 1), *_formatted(row))
        table.add_row("median", *_formatted([statistics.median(column) for column in zip(*rows, strict=True)]))
    finally:
        shutil.rmtree(scratch)
        shutil.rmtree(own)
    return table


def _run(scratch: Path, own: Path) -> list[float]:
    directory = scratch / "checkpoint"
    with _process(own) as job:
        dumped: dict[str, Any] = dump(job, directory, "--leave-running")
    try:
        copied, filled = _copy(directory), _fill()
        again, told = restore(directory)
        again.close()
        reap()
    finally:
        shutil.rmtree(directory)
    pages = told["phases_ms"]["pages"] / 1000
    return [
        *(copied, dumped["total_s"], dumped["total_s"] / copied, dumped["frozen_ms"]),
        *(filled, pages, pages / filled, told["total_s"]),
    ]


def _formatted(row: list[float]) -> list[str]:
    return [f"{value:.1f}" if index == 3 else f"{value:.2f}" for index, value in enumerate(row)]

"""Starts what is moved, moves it, and looks at what it took."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import moves
from tests.hosts import Pair
from tests.tasks import Task, children

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What the process is like. ``dirty``: MiB a second; -1: all of its memory, again and again."""

    mib: int = 0
    dirty: int = 0
    threads: int = 1
    vmas: int = 0


class Victim:
    """A running one; ``passes`` over its memory so far."""

    def __init__(self, task: Task, ready: mmap.mmap) -> None:
        self.task, self._ready = task, ready

    @property
    def passes(self) -> int:
        return int(struct.unpack_from("<Q", self._ready, 8)[0])

    def rate(self, seconds: float) -> float:
        """Passes a second."""
        before, begun = self.passes, time.monotonic()
        time.sleep(seconds)
        return (self.passes - before) / (time.monotonic() - begun)


@contextmanager
def victim(pair: Pair, load: Load) -> Iterator[Victim]:
    """A process on the first host that is ready to be moved; it and what became of it has ended afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        binary = Path(scratch, "victim")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", str(binary), str(HERE / "victim.c")], check=True)
        path = Path(scratch, "ready")
        path.write_bytes(bytes(4096))
        numbers = (load.mib, load.dirty, load.threads, load.vmas)
        task = pair.a.spawn([str(binary), str(path), *map(str, numbers)])
        try:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as ready:
                while not ready[0]:
                    time.sleep(0.01)
                time.sleep(0.2)
                yield Victim(task, ready)
        finally:
            pair.finish()


@dataclass
class Move:
    """One move: what the command reported, and the CPU seconds and the most memory (MiB) that each process took."""

    report: dict[str, Any]
    cpu: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def downtime(self) -> float:
        """Milliseconds."""
        return float(self.report["downtime_ms"])

    @property
    def rate(self) -> float:
        """MB/s of the round that sent most."""
        best = max(self.report["rounds"], key=lambda r: r["bytes_sent"])
        return float(best["bytes_sent"] / best["seconds"] / 1e6)


def move(pair: Pair, subject: Victim, *options: str) -> Move:
    """Move it. AssertionError when that fails."""
    command = moves.start(pair.a, subject.task.pid, pair.b.destination, *options)
    found = Move({})
    watching = threading.Thread(target=_watch, args=(command, found), daemon=True)
    watching.start()
    outcome = moves.finish(command, timeout=600)
    watching.join()
    assert outcome.code == 0, outcome.err
    found.report = outcome.report
    return found


@contextmanager
def apart(subject: Victim) -> Iterator[None]:
    """The victim on one core, and all else, the hosts with what they start too, on the others."""
    cores = os.sched_getaffinity(0)
    first, *others = sorted(cores)
    ours = [pid for pid in _below(os.getpid()) if pid != subject.task.outer]
    _pin(ours, others or [first])
    _pin([subject.task.outer], [first])
    try:
        yield
    finally:
        _pin(ours, cores)


def _pin(pids: Iterable[int], cores: Collection[int]) -> None:
    for pid in pids:
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(tid), cores)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


@contextmanager
def copying(pair: Pair, subject: Victim) -> Iterator[None]:
    """While its pages are copied, round after round; then the move is called off."""
    options = ("--max-rounds", "1000", "--no-converge", "continue", "--compress", "none")
    command = moves.start(pair.a, subject.task.pid, pair.b.destination, *options)
    try:
        time.sleep(2)  # until it is past its start
        yield
    finally:
        command.send_signal(signal.SIGINT)
        outcome = moves.finish(command)
    assert outcome.code == 130, outcome.err


def _watch(command: subprocess.Popen[str], found: Move) -> None:
    while command.poll() is None:
        for pid in [*_below(command.pid), *_sshd()]:
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            role = _role(line)
            if role and "VmHWM" in status:
                found.cpu[role] = (int(fields[11]) + int(fields[12])) / TICK
                peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
                found.memory[role] = max(found.memory.get(role, 0), peak)
        time.sleep(0.02)


def _role(line: bytes) -> str | None:
    for word, role in (
        (b"agents.source", "source agent"),
        (b"bin/migrate", "coordinator"),
        (b"python3 -I", "destination agent"),
        (b"sshd: root@notty", "sshd"),
        (b"migrate-overseer", "restorer"),
    ):
        if word in line:
            return role
    return None


def _below(pid: int) -> list[int]:
    found = [pid]
    for child in children(pid):
        found += _below(child)
    return found


def _sshd() -> list[int]:
    """Everything of SSH sessions on this machine: sshd, the agent, overseer and restoree."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if _role(line) in ("sshd", "destination agent", "restorer"):
                found.append(int(name))
    return found


_STREAM = """
import sys, time, os, trio
from migrate.transport import ssh
from migrate.transport.target import Destination

async def main():
    piece = os.urandom(1 << 20)
    async with ssh.connect(Destination(sys.argv[1], config=sys.argv[2])) as link:
        process = await link.run("cat > /dev/null")
        begun = time.monotonic()
        seconds, sent = float(sys.argv[3]), 0
        while time.monotonic() - begun < seconds:
            await process.send_all(piece)
            sent += len(piece)
        await process.send_eof()
        await process.wait_ended()
        print(sent / (time.monotonic() - begun) / 1e6)

trio.run(main)
"""


def stream(pair: Pair, seconds: float) -> float:
    """MB/s that the same kind of SSH connection moves into `cat`."""
    command = [sys.executable, "-c", _STREAM, pair.b.destination, str(pair.a.ssh_config), str(seconds)]
    return float(pair.a.run(command, timeout=seconds + 60).stdout)

"""`make demo`: two hosts on this machine, two jobs that work on the first, both moved to the second while they work.

The jobs: ``xz -T2 -9e`` over real files, and a Python program whose threads count and log. At the end the compressed
file must be the same to the bit as that of a run which never moved, and the log must be without a gap or a repeat.
The exit code is 0 only when all of that holds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts import Host, Pair, two_hosts
from tests.tasks import Task, wait_until
from tests.victims import check_counter

# What a Debian with a compiler has: programs, libraries and text.
SOURCES = ("/usr/lib", "/usr/share")
THREADS = 4
# `-9e` alone has blocks of 192 MiB, so that -T2 would have no work for its second thread.
XZ = ("xz", "-T2", "-9e", "--block-size=16MiB", "--stdout")
Mover = Callable[..., tuple[Task, str]]


class DemoFailed(Exception):
    """Something that the demo shows does not hold."""


def say(text: str) -> None:
    """One line, at once: the display of `migrate` goes to the same terminal through another stream."""
    print(text, flush=True)


def gather(target: Path, size: int) -> None:
    """Write ``size`` bytes of a tar of this machine's files. One file is made, so it need not be the same each time."""
    command = ["tar", "--create", "--sort=name", "--file=-", *SOURCES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar, target.open("wb") as out:
        assert tar.stdout
        left = size
        while left and (piece := tar.stdout.read(min(left, 1 << 20))):
            out.write(piece)
            left -= len(piece)
        tar.kill()
    if left:
        raise DemoFailed(f"the files under {' and '.join(SOURCES)} are {left} bytes short of {size}")


def digest(path: Path) -> str:
    """SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def migrate(pair: Pair, task: Task, *options: str) -> tuple[Task, str]:
    """Move a task of node1 to node2 by the command; returns the task there and how long it was down.

    The command's display goes to this terminal (standard error), its last sentence comes here.
    """
    program = str(Path(sys.executable).with_name("migrate"))
    command = [program, str(task.pid), pair.b.destination, "-F", str(pair.a.ssh_config), *options]
    say(f"node1$ {' '.join(['migrate', *command[1:]])}")
    terminal = {"TERM": os.environ.get("TERM", "dumb")}
    with pair.a.popen(command, stdout=subprocess.PIPE, text=True, env=terminal) as process:
        try:
            output, _ = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    say(output.rstrip())
    if process.returncode:
        raise DemoFailed(f"migrate ended with {process.returncode}")
    found = re.search(rf"^moved {task.pid} .* as pid (\d+): .*, down for (\S+ \S+)$", output, re.MULTILINE)
    if not found:
        raise DemoFailed("migrate ended well, but did not say that it moved anything")
    task.wait_gone(0.0)
    return pair.b.adopt(int(found[1])), found[2]


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    say(f"\n== {title}")
    start = time.monotonic()
    yield
    say(f"   ({time.monotonic() - start:.1f} s)")


def finish(task: Task, host: Host, output: Path, limit: float) -> None:
    """Wait until a task has done its work, saying now and then how far it is."""
    end = time.monotonic() + limit
    while task.alive:
        if time.monotonic() > end:
            raise DemoFailed(f"{task!r} on {host.name} was not done in {limit:.0f} s")
        try:
            task.wait_gone(10.0)
        except TimeoutError:
            say(f"   {host.name}: {output.name} has {output.stat().st_size / 1e6:.1f} MB")


def demonstrate(pair: Pair, size: int, move: Mover) -> None:
    """The whole of it; DemoFailed when something does not hold."""
    place = pair.directory
    data, moved, still, log = (place / name for name in ("data", "moved.xz", "never-moved.xz", "counter.log"))
    say(f"two hosts on this machine: node1 {pair.a.address}, node2 {pair.b.address}, each with its own sshd")
    with step(f"{size / 1e6:.0f} MB of real data: a tar of {' and '.join(SOURCES)}"):
        gather(data, size)

    with step("two jobs on node1, and beside them the xz run that will never move"):
        xz = pair.a.spawn(XZ, stdin=data, stdout=moved)
        counter = pair.a.spawn(
            ["python3", str(Path(__file__).parent / "victims" / "counter.py"), str(log), str(THREADS), "0.003"]
        )
        # It takes what the others leave of the two cores, so that the move is of a job that has the machine to itself.
        reference = pair.a.spawn(["chrt", "--idle", "0", *XZ], stdin=data, stdout=still)
        say(f"   pid {xz.pid}: {' '.join(XZ)} < {data.name} > {moved.name}")
        say(f"   pid {counter.pid}: python3 counter.py {log.name} {THREADS}")
        wait_until("the first lines of the log", lambda: log.exists() and log.stat().st_size > 10_000, 60)

    with step("move the Python program"):
        counter, counter_down = move(pair, counter)
        lines_then = log.stat().st_size

    with step("move xz once it has written its first blocks"):
        wait_until("a block of xz", lambda: moved.stat().st_size > 100_000, 600)
        # xz goes through its memory as fast as both cores allow, and so do we, on the same ones: the rounds may never
        # shrink. Then it is to be stopped all the same, and is down for as long as its memory takes to travel.
        xz, xz_down = move(pair, xz, "--no-converge", "continue")
        if not xz.alive:
            raise DemoFailed("xz was done before it could be moved: too little data")

    with step("wait for both xz runs"):
        limit = 60 + size / 200_000
        finish(xz, pair.b, moved, limit)
        finish(reference, pair.a, still, limit)
        if reference.wait() != 0:
            raise DemoFailed(f"the xz that never moved ended with {reference.wait()}")

    with step("compare"):
        if log.stat().st_size <= lines_then or not counter.alive:
            raise DemoFailed("the Python program did not go on counting on node2")
        counter.kill()
        with log.open() as lines:
            try:
                count = check_counter(lines, THREADS)
            except ValueError as error:
                raise DemoFailed(f"the log of the Python program: {error}") from error
        digests = digest(moved), digest(still)
        say(f"   sha256 {digests[0]}  {moved.name}, {moved.stat().st_size} bytes, finished on node2")
        say(f"   sha256 {digests[1]}  {still.name}, {still.stat().st_size} bytes, made on node1 alone")
        if digests[0] != digests[1]:
            raise DemoFailed("the digests differ")
    say(f"\nxz:     down for {xz_down:>9}; the result is the same to the bit")
    say(f"python: down for {counter_down:>9}; {count} lines by {THREADS} threads, no gap, no repeat")


def main(argv: list[str] | None = None, move: Mover = migrate) -> int:
    """Run the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--size", type=int, default=152_000_000, help="bytes of data for xz (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with two_hosts() as pair:
        try:
            demonstrate(pair, arguments.size, move)
        except (DemoFailed, TimeoutError, AssertionError) as error:
            say(f"\ndemo failed: {error}")
            for host in (pair.a, pair.b):
                say(f"--- the end of {host.name}'s sshd log")
                say("\n".join((host.directory / "sshd.log").read_text().splitlines()[-15:]))
            return 1
        finally:
            pair.finish()
    say("\ndemo passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

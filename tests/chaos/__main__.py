"""``python -m tests.chaos``: a thousand moves and more with disasters, on several pairs of hosts at once: `make chaos`.

``python -m tests.chaos SEED/LANE/NUMBER [TIMES]`` repeats the plan of one move. Disasters come at a time, not at an
instruction, so that it may take some.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from tests import leaks
from tests.chaos.table import Tally
from tests.chaos.worker import Report, moves, names

_TOLD = 20.0  # seconds between two lines of progress
_LANES = 4


def main(*words: str) -> int:
    """0: nothing is broken."""
    leaks.become_subreaper()
    if words[:1] == ("--lane",):
        return _lane(words[1], int(words[2]))
    tally = Tally()
    if words:
        name, times = words[0], int(words[1]) if words[1:] else 20
        _tell(moves(int(name.split("/")[1]), itertools.repeat(name, times)), tally, _TOLD / 20)
    else:
        wanted = int(os.environ.get("CHAOS_MOVES", "1000"))
        seed = os.environ.get("CHAOS_SEED") or str(time.time_ns() // 1_000_000)
        lanes = int(os.environ.get("CHAOS_LANES", str(_LANES)))
        end = time.monotonic() + float(os.environ.get("CHAOS_SECONDS", "inf"))
        print(f"{wanted} moves that are hit, on {lanes} pairs of hosts, CHAOS_SEED={seed}", flush=True)

        def enough() -> bool:
            return tally.hit >= wanted or time.monotonic() > end

        with ExitStack() as stack:
            _tell(_together(stack, seed, lanes, enough), tally, _TOLD)
    print(*tally.lines(), sep="\n", flush=True)
    return 1 if tally.broken else 0


def _lane(seed: str, number: int) -> int:
    """A move for each line of standard input, until its end; then the process is asked."""
    asked = (name for name, _ in zip(names(seed, number), sys.stdin, strict=False))
    for report in moves(number, asked):
        print(report.line(), flush=True)
    return 0


def _together(stack: ExitStack, seed: str, lanes: int, enough: Callable[[], bool]) -> Iterator[Report]:
    """Moves of several lanes, as they end, until there are enough."""
    heard: queue.Queue[tuple[int, str]] = queue.Queue()
    workers = []

    def listen(number: int, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout
        for line in worker.stdout:
            heard.put((number, line))
        heard.put((number, ""))

    for number in range(lanes):
        argv = [sys.executable, "-m", "tests.chaos", "--lane", seed, str(number)]
        worker = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        workers.append(worker)
        threading.Thread(target=listen, args=(number, worker), daemon=True).start()
        _ask(worker)
    at_work = set(range(lanes))
    while at_work:
        number, line = heard.get()
        worker = workers[number]
        if line:
            yield Report(**json.loads(line))
            if not enough():
                _ask(worker)
            elif worker.stdin and not worker.stdin.closed:
                worker.stdin.close()
            continue
        at_work.remove(number)
        if worker.wait():
            yield Report(f"lane {number}", [], "BROKEN", 0, f"it ended with {worker.returncode}; why is said above")


def _ask(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin
    worker.stdin.write("move\n")
    worker.stdin.flush()


def _tell(reports: Iterator[Report], tally: Tally, often: float) -> None:
    """Progress, and what is broken, as it comes."""
    begun = last = time.monotonic()
    for report in reports:
        tally.add(report.kinds, report.outcome)
        if report.error:
            print(f"\n{report.plan}\n{report.error}\n", flush=True)
        now = time.monotonic()
        if now - last > often:
            last = now
            print(f"{now - begun:5.0f} s  {tally.progress()}", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

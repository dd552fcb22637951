"""A program that works for as long as it is let: four threads, each of which computes a number to ever more digits.

All that it knows is in its memory: were a step lost or made twice, all digits that come later would be wrong. Each
thread looks at CLOCK_MONOTONIC after every digit, and at which kernel it is on. Usage: digits.py DIRECTORY. How far it
is, it says in DIRECTORY/answer whenever DIRECTORY/ask appears, and ends when that says "end".
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path


def _of_e() -> Iterator[int]:
    yield 2
    for even in count(2, 2):
        yield from (1, even, 1)


def _of_the_root() -> Iterator[int]:
    yield 1
    yield from repeat(2)


NUMBERS: dict[str, Callable[[], Iterator[int]]] = {
    "e": _of_e,
    "sqrt 2": _of_the_root,
    "golden ratio": lambda: repeat(1),
    "coth 1": lambda: count(1, 2),
}
"""The terms of their continued fractions, which have no end."""


def digits(terms: Iterator[int]) -> Iterator[int]:
    """The decimal digits of a continued fraction: R. W. Gosper's, in HAKMEM (1972), item 101."""
    a, b, c, d = 1, 0, 0, 1  # what is left is (a·x + b) / (c·x + d), x being the fraction of the terms to come
    for term in terms:
        a, b, c, d = a * term + b, a, c * term + d, c
        while c and d and a // c == b // d:
            digit = a // c
            yield digit
            a, b = 10 * (a - digit * c), 10 * (b - digit * d)


class Worker(threading.Thread):
    """One number."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.found: list[str] = []
        self.kernels: list[tuple[int, str]] = []  # from which digit on it was on which
        self.backwards, self.longest = 0, 0.0

    def run(self) -> None:
        """Until the process ends."""
        last = time.monotonic()
        for digit in digits(NUMBERS[self.name]()):
            self.found.append(str(digit))
            kernel = os.uname().release
            if not self.kernels or self.kernels[-1][1] != kernel:
                self.kernels.append((len(self.found), kernel))
            time.sleep(0.02)
            now = time.monotonic()
            self.backwards += now < last
            self.longest = max(self.longest, now - last)
            last = now


def report(workers: list[Worker], place: Path) -> None:
    """How far it is, for whoever asked."""
    told = {
        "pid": os.getpid(),
        "kernel": os.uname().release,
        "digits": {worker.name: "".join(worker.found) for worker in workers},
        "kernels": {worker.name: worker.kernels for worker in workers},
        "backwards": sum(worker.backwards for worker in workers),
        "longest": max(worker.longest for worker in workers),
    }
    aside = place / "answer.new"
    aside.write_text(json.dumps(told))
    aside.rename(place / "answer")


def main(place: Path) -> None:
    """Work."""
    workers = [Worker(name) for name in NUMBERS]
    for worker in workers:
        worker.start()
    wanted = ""
    while wanted != "end":
        time.sleep(0.05)
        ask = place / "ask"
        if ask.exists():
            wanted = ask.read_text().strip()
            ask.unlink()
            report(workers, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A program that works for as long as it is let: four threads compute digits of e, each its own, and watch the clock.

It says how far it is whenever /tmp/migrate-demo/ask appears, and ends when /tmp/migrate-demo/end does, with a check of
all that it has computed.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time

PLACE = "/tmp/migrate-demo"
THREADS = 4


class Worker(threading.Thread):
    """Digits of e by the spigot of its own length, over and over, and CLOCK_MONOTONIC in between."""

    def __init__(self, digits: int) -> None:
        super().__init__(daemon=True)
        self.digits, self.rounds, self.wrong, self.backwards = digits, 0, 0, 0
        self.first = spigot(digits)
        self.last = time.monotonic()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.wrong += spigot(self.digits) != self.first
            self.rounds += 1
            now = time.monotonic()
            self.backwards += now < self.last
            self.last = now
            time.sleep(0.01)


def spigot(digits: int) -> str:
    """Rabinowitz and Wagon's: e in the factorial number system, times ten for every digit."""
    places = [1] * (digits + 9)
    found = []
    for _ in range(digits):
        carry = 0
        for index in range(len(places) - 1, -1, -1):
            carry, places[index] = divmod(10 * places[index] + carry, index + 2)
        found.append(str(carry))
    return "2." + "".join(found)


def report(workers: list[Worker], started: float) -> None:
    """How far it is, for whoever asks."""
    told = {
        "pid": os.getpid(),
        "kernel": platform.release(),  # uname(2), asked anew
        "rounds": [worker.rounds for worker in workers],
        "wrong": sum(worker.wrong for worker in workers),
        "backwards": sum(worker.backwards for worker in workers),
        "seconds": round(time.monotonic() - started, 3),
        "e": workers[0].first[:30],
    }
    with open(f"{PLACE}/answer.new", "w") as file:
        json.dump(told, file)
    os.rename(f"{PLACE}/answer.new", f"{PLACE}/answer")


def main() -> None:
    """Work."""
    started = time.monotonic()
    workers = [Worker(60 + 20 * number) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    while not os.path.exists(f"{PLACE}/end"):
        if os.path.exists(f"{PLACE}/ask"):
            os.unlink(f"{PLACE}/ask")
            report(workers, started)
        time.sleep(0.02)
    report(workers, started)


if __name__ == "__main__":
    main()

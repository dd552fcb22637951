"""``counter.py FILE [THREADS [SECONDS]]``: what counter.c does, in Python, with one lock for all threads."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO


def count(which: int, log: TextIO, lock: threading.Lock, interval: float) -> None:
    number = 0
    while True:
        with lock:
            log.write(f"{which} {number}\n")
            log.flush()
        number += 1
        time.sleep(interval)


def main() -> None:
    path = sys.argv[1]
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    interval = float(sys.argv[3]) if len(sys.argv) > 3 else 0.001
    lock = threading.Lock()
    with open(path, "a") as log:
        for which in range(1, threads):
            threading.Thread(target=count, args=(which, log, lock, interval), daemon=True).start()
        count(0, log, lock, interval)


if __name__ == "__main__":
    main()

"""Programs as people run them, moved between kernels in the middle of their work and judged by their results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.crosskernel.guests import HOST
from tests.crosskernel.travels import PYTHON, Travel, Travels
from tests.hosts import NULL
from tests.tasks import wait_until

PROGRAM = """
import os, threading, time
go, done, counts = os.environ["VICTIM_GO"], threading.Event(), [0] * 3
latest, lock, passed, beats = [time.monotonic()], threading.Lock(), [], open(os.environ["VICTIM_DIR"] + "/log", "w")
def count(i):
    text = ""
    while not done.is_set():
        with lock:
            now = time.monotonic()
            assert now >= latest[0], f"the clock went back from {latest[0]} to {now}"
            latest[0] = now
        deadline = now + 0.05
        assert not done.wait(0.05) or done.is_set()
        assert done.is_set() or time.monotonic() >= deadline, "woken early"
        counts[i] += 1
        text = (text + chr(97 + counts[i] % 26))[-50:]
    assert text == "".join(chr(97 + n % 26) for n in range(max(1, counts[i] - 49), counts[i] + 1))
    passed.append(i)
started, boottime = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
threads = [threading.Thread(target=count, args=(i,)) for i in range(3)]
[t.start() for t in threads]
print("ready", flush=True)
cache = {}
while not os.path.exists(go):
    key = os.urandom(16)
    cache[key] = key[::-1]
    time.sleep(0.01)  # an emulated machine has other work, too
    if len(cache) > 50:
        assert all(k[::-1] == v for k, v in cache.items())
        cache.clear()
        print(sum(counts), file=beats, flush=True)
done.set()
[t.join() for t in threads]
assert sorted(passed) == [0, 1, 2]
assert abs((time.monotonic() - started) - (time.clock_gettime(time.CLOCK_BOOTTIME) - boottime)) < 1
print("pass", flush=True)
"""


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("way", [
    pytest.param(["5.10", HOST], id="to-the-oldest-and-back"),
    pytest.param(["6.1", "5.10", "6.12", "7.2", HOST], id="everywhere", marks=pytest.mark.every_kernel),
])
def test_python(travels: Travels, way: list[str]) -> None:
    """It reads time.monotonic() in threads that wait for each other."""
    travels.world.need(*way)
    travel = travels.run("python3", HOST, [PYTHON, "-c", PROGRAM])
    wait_until("python3 at work", lambda: "ready\n" in travel.out or travel.err, 60)
    for dest in way:
        travel.move(dest)
        log = travel.directory / "log"
        size = log.stat().st_size
        wait_until(f"python3 to go on at {dest}", lambda size=size, log=log: log.stat().st_size > size, 120)
        assert not travel.err, travel.complaint
    travel.tell()
    travel.verdict()


def _moved_at_work(travels: Travels, name: str, argv: list[str], stdin: Path = NULL) -> Travel:
    """Start it on the oldest kernel, and move it to the newest and to the one before once it has used some CPU time;
    it must not be done by then."""
    travels.world.need("5.10", "6.12", "7.2")
    travel = travels.run(name, "5.10", argv, stdin)
    for dest in ("7.2", "6.12"):
        used = _ticks(travel)
        wait_until(f"{name} at work", lambda used=used: _ticks(travel) > used + 30, 60)
        travel.move(dest)
    return travel


def _ticks(travel: Travel) -> int:
    fields = travel.node.read(f"/proc/{travel.pid}/stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.every_kernel
@pytest.mark.timeout(900)
def test_xz(travels: Travels) -> None:
    data = travels.world.directory / "data"
    libraries = sorted(Path("/usr/lib/x86_64-linux-gnu").glob("libc*.so.*"))
    data.write_bytes(b"".join(path.read_bytes() for path in libraries)[: 12 << 20])
    travel = _moved_at_work(travels, "xz", ["xz", "-T2", "-6e", "--block-size=2MiB", "-c", str(data)])
    travel.node.wait_gone(travel.pid, 400)
    assert not travel.err, travel.complaint
    back = subprocess.run(["xz", "-dc", str(travel.directory / "out")], check=True, capture_output=True).stdout
    assert back == data.read_bytes()


COUNT = 300_000
SQLITE = f"""
CREATE TABLE numbers (n INTEGER PRIMARY KEY, square INTEGER, words TEXT);
BEGIN;
INSERT INTO numbers WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {COUNT})
    SELECT n, n * n, hex(n) || printf('%050d', n) FROM c;
CREATE INDEX by_words ON numbers (words);
COMMIT;
SELECT count(*), sum(n), sum(square) FROM numbers;
PRAGMA integrity_check;
"""


@pytest.mark.every_kernel
@pytest.mark.timeout(900)
def test_sqlite3_in_the_middle_of_a_transaction(travels: Travels) -> None:
    database, script = travels.world.directory / "numbers.db", travels.world.directory / "numbers.sql"
    script.write_text(SQLITE)
    travel = _moved_at_work(travels, "sqlite3", ["sqlite3", "-batch", str(database)], script)
    travel.node.wait_gone(travel.pid, 400)
    assert not travel.err, travel.complaint
    line, check = travel.out.splitlines()
    assert check == "ok"
    sums = [COUNT, COUNT * (COUNT + 1) // 2, COUNT * (COUNT + 1) * (2 * COUNT + 1) // 6]
    assert [int(part) for part in line.split("|")] == sums

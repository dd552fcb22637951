"""Pools of processes that share queues and memory, moved at work and judged by their results."""

from __future__ import annotations

import re
import sys

from tests.migration.journey import Journeys
from tests.tasks import wait_until

AT_WORK = ("--no-converge", "continue", "--max-rounds", "4")  # they write as long as they live

# A pool, two queues, a lock, and memory that all of them write to.
POOL = """
import hashlib, multiprocessing as mp, os, queue, random, time
from multiprocessing import shared_memory
CELLS, SIZE = 64, 4096
def digest(number):
    return hashlib.sha256(random.Random(number).randbytes(20000)).hexdigest()
def work(name, lock, asked, answered):
    memory = shared_memory.SharedMemory(name)
    while (number := asked.get()) is not None:
        cell = number % CELLS
        with lock:
            before = int.from_bytes(memory.buf[cell * SIZE : cell * SIZE + 8], "little")
            content = bytes([number & 255]) * (SIZE - 8)
            memory.buf[cell * SIZE : cell * SIZE + 8] = (before + 1).to_bytes(8, "little")
            memory.buf[cell * SIZE + 8 : (cell + 1) * SIZE] = content
        answered.put((number, digest(number), os.getpid()))
    memory.close()
def square(x):
    return x * x, os.getpid()
if __name__ == "__main__":
    memory = shared_memory.SharedMemory(create=True, size=CELLS * SIZE)
    lock, asked, answered = mp.Lock(), mp.Queue(), mp.Queue()
    workers = [mp.Process(target=work, args=(memory.name, lock, asked, answered)) for _ in range(3)]
    [worker.start() for worker in workers]
    sent = done = 0
    said, open_, who, squares = False, set(), set(), 0
    with mp.Pool(2) as pool:
        while not os.path.exists(os.environ["VICTIM_GO"]) or open_:
            while len(open_) < 8 and not os.path.exists(os.environ["VICTIM_GO"]):
                asked.put(sent)
                open_.add(sent)
                sent += 1
            number, found, pid = answered.get(timeout=30)
            open_.remove(number)
            who.add(pid)
            assert found == digest(number), number
            done += 1
            if done % 20 == 0:
                results = pool.map_async(square, range(squares, squares + 50)).get(30)
                assert [result for result, _ in results] == [x * x for x in range(squares, squares + 50)]
                squares += 50
            if done >= 100 and not said:
                print("ready", flush=True)
                said = True
        again = pool.map(square, range(10))
        assert [result for result, _ in again] == [x * x for x in range(10)]
    for _ in workers:
        asked.put(None)
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0, worker.exitcode
    assert done == sent and answered.empty()
    counts = [int.from_bytes(memory.buf[cell * SIZE : cell * SIZE + 8], "little") for cell in range(CELLS)]
    assert counts == [len(range(cell, sent, CELLS)) for cell in range(CELLS)], counts
    for cell in range(CELLS):
        last = max(range(cell, sent, CELLS))
        content = bytes(memory.buf[cell * SIZE + 8 : (cell + 1) * SIZE])
        assert len(set(content)) == 1 and (content[0] - cell) % CELLS == 0, (cell, content[:4])
    memory.close()
    memory.unlink()
    print(f"did {done} by {len(who)}")
    print("pass", flush=True)
"""


def test_a_python_pool_with_shared_memory(journeys: Journeys) -> None:
    """Processes that take from one queue, answer into another and write to shared memory; nothing is lost or done
    twice."""
    journey = journeys.run("pool", [sys.executable, "-c", POOL])
    wait_until("results", lambda: "ready\n" in journey.out or not journey.task.alive, 60)
    journey.must_live()
    journey.move(*AT_WORK, look=False)
    journey.tell()
    did = re.search(r"did (\d+) by (\d+)", journey.verdict(60))
    assert did and int(did[1]) > 100 and int(did[2]) == 3


def test_named_memory(journeys: Journeys) -> None:
    """What C programs use of it, one by one. (Its files are others there, by their numbers.)"""
    journey = journeys.start("named")
    journey.move("--max-downtime", "10s", look=False)
    journey.tell()
    journey.verdict()

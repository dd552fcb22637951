"""PostgreSQL with its processes, shared memory, semaphores and unix socket, and clients that go on with their
transactions: no error, and every row is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import moves
from tests.hosts import Pair
from tests.logins import USERS
from tests.migration.journey import Journeys
from tests.tasks import children, wait_until

AT_WORK = ("--no-converge", "continue", "--max-rounds", "4")
CLIENTS = 3
SERVER = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
USER = str(USERS["guest"])  # PostgreSQL does not run as root
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]

# The first process: it has a server and clients, which check every answer, until it is told to look.
DRIVER = """
import os, signal, subprocess, sys, threading, time
server_bin, directory, clients = sys.argv[1], sys.argv[2], int(sys.argv[3])
PSQL = [server_bin + "/psql", "-XAtq", "-h", directory, "-d", "postgres", "-v", "ON_ERROR_STOP=1"]
PIPE = subprocess.PIPE
go = os.environ["VICTIM_GO"]
log = open(directory + "/server.log", "w")
server = subprocess.Popen(
    [server_bin + "/postgres", "-D", directory + "/data", "-k", directory, "-c", "listen_addresses="],
    stdout=log, stderr=log)
while subprocess.run([*PSQL, "-c", "select 1"], stdout=PIPE, stderr=PIPE).returncode:
    assert server.poll() is None, "the server has ended"
    time.sleep(0.1)
subprocess.run([*PSQL, "-c", "create table rows (client int, number int, primary key (client, number))"], check=True)
done = [0] * clients

def client(number):
    with subprocess.Popen(PSQL, stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as psql:
        while not os.path.exists(go) or done[number] < 100:
            one = done[number] + 1
            psql.stdin.write(f"begin; insert into rows values ({number}, {one});"
                             f" select count(*), max(number) from rows where client = {number}; commit;\\n")
            answer = psql.stdout.readline()
            assert answer == f"{one}|{one}\\n", (number, one, answer)
            done[number] = one
            if one == 50:
                print("at work", flush=True)
            time.sleep(0.005)
        psql.stdin.close()
        print("client ended with", psql.wait(), flush=True)

threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
rows = subprocess.run([*PSQL, "-c", "select count(*) from rows"], stdout=PIPE, text=True, check=True).stdout.strip()
print("rows missing:", sum(done) - int(rows), flush=True)
server.send_signal(signal.SIGINT)
print("the server ended with", server.wait(), flush=True)
"""


@pytest.mark.timeout(200)
@pytest.mark.parametrize("memory", ["default", "sysv"])
def test_server_and_its_clients(journeys: Journeys, memory: str) -> None:
    """``memory``: as a fresh cluster has it (a small System V segment, the large memory mapped without a name, and
    shm_open(3) for what comes later), and all of it of System V."""
    pair = journeys.pair
    directory = _cluster(pair, memory)
    journey = journeys.run("postgresql", [*AS_USER, sys.executable, "-c", DRIVER, str(SERVER), str(directory),
                                          str(CLIENTS)])  # fmt: skip
    log = directory / "server.log"

    def at_work() -> bool:
        assert journey.task.alive, f"{journey.complaint}\n{log.read_text()}"
        return journey.out.count("at work\n") == CLIENTS

    wait_until("clients at work", at_work, 60)
    assert len(children(journey.task.outer)) == 1 + CLIENTS
    here = _traces(pair)
    assert any(here)
    before = len(log.read_text())
    # Not every page is compared on top: what the server has in memory its clients check themselves.
    journey.task, _ = moves.move(pair, journey.task, *AT_WORK, timeout=110, verify=False)
    assert "ended" not in journey.out and not journey.err  # it was in the middle of it
    assert not any(_traces(pair))  # nothing of it is left
    journey.tell()
    journey.task.wait_gone(60)
    told = f"{journey.out}{journey.err}{log.read_text()}"
    ends = ["client ended with 0"] * CLIENTS
    assert journey.out.splitlines()[CLIENTS:] == [*ends, "rows missing: 0", "the server ended with 0"], told
    # Only until it is told to end: it may not have seen by then that a client has gone, and says that this is FATAL.
    at_work_still, *_ = log.read_text()[before:].partition("received fast shutdown request")
    assert not re.search(r"ERROR|FATAL|PANIC|crash|terminated by signal", at_work_still), told
    assert not journey.err, told


def _cluster(pair: Pair, memory: str) -> Path:
    """A directory with one that has never run."""
    directory = pair.directory / f"postgresql-{memory}"
    directory.mkdir()
    directory.chmod(0o777)
    initdb = [f"{SERVER}/initdb", "-D", str(directory / "data"), "-A", "trust", "-U", "guest", "--no-sync"]
    pair.a.run([*AS_USER, *initdb])
    if memory == "sysv":
        with (directory / "data/postgresql.conf").open("a") as file:
            file.write("shared_memory_type = sysv\ndynamic_shared_memory_type = sysv\n")
    return directory


def _traces(pair: Pair) -> tuple[list[str], list[str]]:
    """On node1: segments of System V, and names in /dev/shm."""
    segments = pair.a.run(["cat", "/proc/sysvipc/shm"]).stdout.splitlines()[1:]
    return segments, pair.a.run(["ls", "-A", "/dev/shm"]).stdout.split()

"""Unix sockets move with all that are connected to them."""

from __future__ import annotations

import sys

import pytest

from tests.migration.journey import Journeys
from tests.tasks import wait_until

# Its event loop wakes itself by a socket pair: when a thread hands it something, and when a signal comes.
ASYNCIO = """
import asyncio, os, signal, socket, threading

async def main():
    loop, total, signals = asyncio.get_running_loop(), 0, []
    loop.add_signal_handler(signal.SIGUSR1, lambda: signals.append(1))
    queue, here, there = asyncio.Queue(), *socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=here)
    echo_reader, echo_writer = await asyncio.open_unix_connection(sock=there)

    def feed():
        for number in range(1, 10 ** 9):
            if os.path.exists(os.environ["VICTIM_GO"]):
                break
            asyncio.run_coroutine_threadsafe(queue.put(number), loop).result()
            if number % 50 == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
        asyncio.run_coroutine_threadsafe(queue.put(0), loop).result()

    async def echo():
        while line := await echo_reader.readline():
            echo_writer.write(line)
            await echo_writer.drain()

    echoing, thread, seen = asyncio.create_task(echo()), threading.Thread(target=feed), 0
    thread.start()
    print("ready", flush=True)
    while number := await asyncio.wait_for(queue.get(), 20):
        seen += 1
        assert number == seen, (number, seen)
        writer.write(f"{number}\\n".encode())
        assert int(await asyncio.wait_for(reader.readline(), 20)) == number
        total += number
    thread.join()
    assert total == seen * (seen + 1) // 2 and seen > 100, seen
    await asyncio.sleep(0.1)
    assert len(signals) > 0
    writer.close()
    await asyncio.wait_for(echoing, 20)
    print("pass", flush=True)

asyncio.run(main())
"""

# Pipes carry what its queues hold, and semaphores whose names are gone say whose turn it is.
POOL = """
import multiprocessing, os, sys, time

def square(number):
    time.sleep(0.001)
    return number * number, os.getpid()

def relay(source, sink):
    while (item := source.get()) is not None:
        sink.put(item)
    sink.put(None)

def main():
    go = os.environ["VICTIM_GO"]
    source, sink = multiprocessing.Queue(), multiprocessing.Queue()
    worker = multiprocessing.Process(target=relay, args=(source, sink))
    worker.start()
    with multiprocessing.Pool(3) as pool:
        print("ready", flush=True)
        rounds = 0
        while not os.path.exists(go):
            for number, (result, _) in enumerate(pool.imap(square, range(50), 5)):
                assert result == number * number
            source.put(rounds)
            assert sink.get(timeout=20) == rounds
            rounds += 1
    source.put(None)
    assert sink.get(timeout=20) is None
    worker.join()
    print("pass", flush=True)

if __name__ == "__main__":
    main()
"""

# A server with a thread for each connection, in a process of its own, and clients that check its answers.
SERVER = """
import multiprocessing, os, socket, socketserver, sys, threading

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        total = 0
        for line in self.rfile:
            total += int(line)
            self.wfile.write(b"%d\\n" % total)

def serve(server):
    with server:
        server.serve_forever(0.05)

def ask(address, errors):
    try:
        with socket.socket(socket.AF_UNIX) as lasting:
            lasting.connect(address)
            answers, total, number = lasting.makefile("rb"), 0, 0
            while not os.path.exists(os.environ["VICTIM_GO"]) or number < 200:
                number += 1
                total += number
                lasting.sendall(b"%d\\n" % number)
                assert int(answers.readline()) == total, number
                if number % 10 == 0:
                    with socket.socket(socket.AF_UNIX) as brief:
                        brief.connect(address)
                        brief.sendall(b"7\\n")
                        brief.shutdown(socket.SHUT_WR)
                        assert brief.makefile("rb").read() == b"7\\n"
    except BaseException as error:
        errors.append(repr(error))

def main():
    address = "\\0server" if sys.argv[1] == "abstract" else os.path.join(os.environ["VICTIM_DIR"], "socket")
    server = socketserver.ThreadingUnixStreamServer(address, Handler)
    server.daemon_threads = True
    process = multiprocessing.Process(target=serve, args=(server,))
    process.start()
    errors = []
    clients = [threading.Thread(target=ask, args=(address, errors)) for _ in range(3)]
    for client in clients:
        client.start()
    print("ready", flush=True)
    for client in clients:
        client.join()
    process.terminate()
    process.join()
    assert not errors, errors
    print("pass", flush=True)

main()
"""


@pytest.mark.parametrize("victim", ["socketpairs", "relatives", "listeners", "callers", "datagrams", "flying"])
def test_they_notice_nothing(journeys: Journeys, victim: str) -> None:
    journeys.start(victim).go("--max-downtime", "10s")


def test_of_an_ordinary_user(journeys: Journeys) -> None:
    """They see the same user and group in each other as before."""
    user = ("setpriv", "--reuid=4201", "--regid=4201", "--clear-groups")
    journeys.start("relatives", wrap=user).go("--max-downtime", "10s")


def test_asyncio(journeys: Journeys) -> None:
    journey = journeys.run("asyncio", [sys.executable, "-c", ASYNCIO])
    wait_until("asyncio ready", lambda: "ready" in journey.out or not journey.task.alive)
    journey.move("--max-downtime", "10s", "--no-converge", "continue", look=False)
    journey.tell()
    journey.verdict()


def test_a_pool_with_queues(journeys: Journeys) -> None:
    program = journeys.pair.directory / "pool.py"
    program.write_text(POOL)
    journey = journeys.run("pool", [sys.executable, str(program)])
    wait_until("a pool ready", lambda: "ready" in journey.out or not journey.task.alive, 30)
    journey.move("--max-downtime", "10s", "--no-converge", "continue", look=False)
    journey.tell()
    journey.verdict()


@pytest.mark.parametrize("kind", ["abstract", "path"])
def test_a_server_and_its_clients(journeys: Journeys, kind: str) -> None:
    journey = journeys.run("server", [sys.executable, "-c", SERVER, kind])
    wait_until("a server ready", lambda: "ready" in journey.out or not journey.task.alive, 30)
    journey.move("--max-downtime", "10s", "--no-converge", "continue", look=False)
    journey.tell()
    journey.verdict()

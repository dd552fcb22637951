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


@pytest.mark.parametrize("victim", ["socketpairs", "relatives"])
def test_they_notice_nothing(journeys: Journeys, victim: str) -> None:
    journeys.start(victim).go()


def test_asyncio(journeys: Journeys) -> None:
    journey = journeys.run("asyncio", [sys.executable, "-c", ASYNCIO])
    wait_until("asyncio ready", lambda: "ready" in journey.out or not journey.task.alive)
    journey.move(look=False)
    journey.tell()
    journey.verdict()

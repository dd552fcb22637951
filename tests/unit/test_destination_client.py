"""The coordinator's end of an agent, with the agent played by the test over a stream in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from migrate.transport import frames
from migrate.transport.agent import Agent, AgentError, ConnectionLost, EventHandler, PagesHandler, open_agent
from migrate.transport.frames import Frame, Run


class Far:
    """The agent's side, by hand."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._decoder, self._frames = frames.Decoder(), list[Frame]()

    async def next(self) -> Frame:
        while not self._frames:
            self._frames += self._decoder.feed(bytes(await self.stream.receive_some(1000)))
        return self._frames.pop(0)

    async def request(self) -> dict[str, Any]:
        return frames.parse_json((await self.next()).meta)

    async def say(self, kind: int, blob: bytes = b"", /, **fields: Any) -> None:
        await self.stream.send_all(frames.encode(Frame(kind, frames.json_meta(fields), blob)))


def both(
    test: Callable[[Agent, Far], Awaitable[None]],
    on_pages: PagesHandler | None = None,
    on_event: EventHandler | None = None,
) -> None:
    async def main() -> None:
        near, far = trio.testing.memory_stream_pair()
        with trio.fail_after(10):
            async with open_agent(near, "the agent", on_pages, on_event) as agent:
                await test(agent, Far(far))

    trio.run(main)


def test_replies_find_their_requests() -> None:
    async def test(agent: Agent, far: Far) -> None:
        pending = [await agent.submit("add", b"x" * 10_000, n=n) for n in range(5)]
        asked = [await far.request() for _ in range(5)]
        assert [(each["verb"], each["n"]) for each in asked] == [("add", n) for n in range(5)]
        for each in reversed(asked):
            await far.say(frames.REPLY, str(each["n"]).encode(), id=each["id"], ok=True, twice=2 * each["n"])
        for n, each in enumerate(pending):
            reply = await each.reply()
            assert (reply["twice"], reply.blob) == (2 * n, str(n).encode())

    both(test)


def test_errors_are_typed() -> None:
    async def test(agent: Agent, far: Far) -> None:
        pending = await agent.submit("open")
        number = (await far.request())["id"]
        error = {"kind": "os", "message": "/x: No such file", "errno": 2}
        await far.say(frames.REPLY, id=number, ok=False, error=error)
        with pytest.raises(AgentError, match="^the agent: open: /x: No such file$") as caught:
            await pending.reply()
        assert (caught.value.kind, caught.value.errno) == ("os", 2)

    both(test)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (frames.encode(Frame(frames.REPLY, b'{"id":77,"ok":true}')), "a request that was not made: 77"),
        (frames.encode(Frame(frames.REPLY, b'{"id":1,"ok":false}')), "a refusal without a reason"),
        (frames.encode(Frame(frames.REPLY, b"[]")), "not a JSON object"),
        (frames.encode(Frame(frames.REQUEST, b"{}")), "a REQUEST frame was not expected"),
        (frames.encode(Frame(frames.PAGES, frames.pages_meta([]))), "a PAGES frame was not expected"),
        (b"Segmentation fault", "not a frame"),
        (b"MIG1", "ended inside the header"),
        (b"", "the agent has gone"),
    ],
)
def test_nonsense_loses_the_connection(said: bytes, says: str) -> None:
    async def test(agent: Agent, far: Far) -> None:
        pending = await agent.submit("hello")
        await far.stream.send_all(said)
        await far.stream.send_eof()
        with pytest.raises(ConnectionLost, match=says):
            await pending.reply()
        with pytest.raises(ConnectionLost, match=says):
            await agent.request("hello")
        assert isinstance(await agent.wait_lost(), ConnectionLost)

    both(test)


def test_pages_wait_for_their_handler() -> None:
    taken: list[bytes] = []
    gate = trio.Event()

    async def on_pages(frame: Frame) -> None:
        taken.append(bytes(frame.blob))
        await gate.wait()

    async def test(agent: Agent, far: Far) -> None:
        meta = frames.pages_meta([Run(0, 1)])
        pending = await agent.submit("scan")
        number = (await far.request())["id"]
        for letter in (b"a", b"b"):
            await far.stream.send_all(frames.encode(Frame(frames.PAGES, meta, letter * frames.PAGE)))
        await far.say(frames.REPLY, id=number, ok=True)
        await trio.testing.wait_all_tasks_blocked()
        assert len(taken) == 1, "the second was read before the first was dealt with"
        gate.set()
        await pending.reply()
        assert taken == [b"a" * frames.PAGE, b"b" * frames.PAGE], "a reply overtook the pages before it"

    both(test, on_pages)


def test_a_handler_that_fails_ends_the_block() -> None:
    async def on_pages(frame: Frame) -> None:
        raise ZeroDivisionError("of the handler")

    async def test(agent: Agent, far: Far) -> None:
        await far.stream.send_all(frames.encode(Frame(frames.PAGES, frames.pages_meta([]))))
        await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        both(test, on_pages)


def test_what_the_block_raises_comes_out_alone() -> None:
    async def test(agent: Agent, far: Far) -> None:
        raise KeyError("of the block")

    with pytest.raises(KeyError):
        both(test)


def test_events() -> None:
    heard: list[dict[str, Any]] = []

    async def test(agent: Agent, far: Far) -> None:
        pending = await agent.submit("hello")
        await far.say(frames.EVENT, event="progress", pages=3)
        await far.say(frames.EVENT, event="fatal", kind="restorer-died", message="it was killed")
        with pytest.raises(AgentError, match="it was killed") as caught:
            await pending.reply()
        assert caught.value.kind == "restorer-died"
        assert [each["event"] for each in heard] == ["progress", "fatal"]

    both(test, on_event=heard.append)


def test_a_message_that_is_cut_off_ends_the_conversation() -> None:
    """Whatever is sent next would be taken for the rest of it."""

    async def main() -> None:
        near, far = trio.testing.lockstep_stream_pair()
        with trio.fail_after(10):
            async with open_agent(near, "the agent") as agent:
                with trio.move_on_after(0.05):
                    await agent.send_pages(0, 0, frames.pages_meta([Run(0, 1)]), bytes(frames.PAGE))
                with pytest.raises(ConnectionLost, match="cut off"):
                    await agent.request("hello")
                await far.aclose()

    trio.run(main)

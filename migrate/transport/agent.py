"""The coordinator's end of an agent: requests and replies over any stream of bytes.

    async with open_agent(stream, "the destination") as agent:
        facts = await agent.request("hello")
        await agent.send_pages(1, 0, meta, contents)

Several requests may be under way: `Agent.submit` sends one and returns at once, so that a burst costs one round trip.
The stream may be an SSH session or a socket to a local process; nothing here knows which.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import trio

from migrate.errors import Failed, MigrateError, Problem, Refused
from migrate.transport import frames
from migrate.transport.frames import Buffer, Frame

PagesHandler = Callable[[Frame], Awaitable[None]]
EventHandler = Callable[[dict[str, Any]], None]
_READ = 1 << 18  # bytes asked of the stream at once
_LAST_WORDS = 1.0  # seconds for a process to end after its output has


class AgentError(Failed):
    """The agent did not do what it was asked for.

    ``kind``: ``os`` (with ``errno``), ``restorer-died``, ``pages``, ``protocol``, or what the source agent says.
    """

    def __init__(self, agent: str, verb: str, kind: str, message: str, errno: int | None = None) -> None:
        super().__init__(f"{agent}: {verb}: {message}")
        self.kind, self.message, self.errno = kind, message, errno


class ConnectionLost(Failed):
    """The stream to the agent has ended, or what comes over it makes no sense."""


class Nonsense(Failed):
    """What an agent answered cannot be: it is damaged, of another version, or means ill."""


@contextmanager
def making_sense(agent: str, of: str) -> Iterator[None]:
    """Around the reading of an answer, which waits for nothing: whatever goes wrong there is the answer's fault.

    ``agent`` and ``of``, for the sentence: who gave it, and what it was to tell."""
    try:
        yield
    except (Nonsense, Refused):
        raise
    except Exception as error:
        raise Nonsense(f"{agent}: {of} makes no sense: {type(error).__name__}: {str(error):.200}") from error


@dataclass(frozen=True)
class Reply:
    """What a verb answered. ``who``: the agent and the verb, for sentences."""

    meta: dict[str, Any]
    blob: bytes
    who: str = "an agent"

    def __getitem__(self, field: str) -> Any:
        try:
            return self.meta[field]
        except KeyError:
            raise Nonsense(f"{self.who}: the answer lacks {field!r}") from None

    def number(self, field: str) -> int:
        """A field that must hold a whole number."""
        value = self[field]
        if type(value) is not int:
            raise Nonsense(f"{self.who}: {field!r} of the answer is {value!r:.100}, not a whole number")
        return value


class Pending:
    """A request under way."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self._event = trio.Event()
        self._reply: Reply | None = None
        self._error: Exception | None = None

    async def reply(self) -> Reply:
        """Waits for the reply. Raises Refused, AgentError or ConnectionLost."""
        await self._event.wait()
        if self._error is not None:
            raise self._error
        assert self._reply is not None
        return self._reply

    def _settle(self, reply: Reply | None, error: Exception | None) -> None:
        self._reply, self._error = reply, error
        self._event.set()


class Agent:
    """Use `open_agent`."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        name: str,
        on_pages: PagesHandler | None,
        on_event: EventHandler | None,
        refuses: bool,
    ) -> None:
        self.name = name
        self._refuses = refuses
        self._stream = stream
        self._on_pages, self._on_event = on_pages, on_event
        self._ids = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._sending = trio.Lock()
        self._lost: Exception | None = None
        self._ended = trio.Event()

    # Asking

    async def request(self, verb: str, blob: Buffer = b"", **arguments: Any) -> Reply:
        """Asks, and waits for the reply. Raises Refused, AgentError or ConnectionLost."""
        return await (await self.submit(verb, blob, **arguments)).reply()

    async def submit(self, verb: str, blob: Buffer = b"", **arguments: Any) -> Pending:
        """Asks, and returns as soon as the request is on its way. Requests are answered in the order they were sent."""
        number = next(self._ids)
        meta = frames.json_meta({"id": number, "verb": verb, **arguments})
        pending = self._pending[number] = Pending(verb)
        try:
            await self._send(frames.head(frames.REQUEST, meta, len(blob)), blob)
        except BaseException:
            self._pending.pop(number, None)
            raise
        return pending

    async def send_pages(self, slot: int, flags: int, runs_meta: bytes, blob: Buffer) -> None:
        """Sends a PAGES frame; waits until the stream takes it. The next ``sync`` or ``run`` tells of a failure."""
        await self._send(frames.head(frames.PAGES, runs_meta, len(blob), flags, slot), blob)

    async def _send(self, head: bytes, blob: Buffer) -> None:
        async with self._sending:
            self._check()
            try:
                if len(blob) <= 4096:
                    await self._stream.send_all(head + bytes(blob))
                else:
                    await self._stream.send_all(head)
                    await self._stream.send_all(blob)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                # The reader may be about to hear the reason from the agent itself.
                with trio.move_on_after(2):
                    await self._ended.wait()
                self._lose(ConnectionLost(f"the connection to {self.name} broke: {error}"))
                self._check()
            except trio.Cancelled:
                self._lose(ConnectionLost(f"a message to {self.name} was cut off"))
                raise

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    @property
    def lost(self) -> bool:
        """Whether it can be asked no more."""
        return self._lost is not None

    async def wait_lost(self) -> Exception:
        """Waits until the agent is gone; the reason."""
        await self._ended.wait()
        assert self._lost is not None
        return self._lost

    # Hearing

    async def _read(self) -> None:
        decoder = frames.Decoder()
        try:
            while data := await self._stream.receive_some(_READ):
                for frame in decoder.feed(bytes(data)):
                    await self._frame(frame)
            decoder.eof()
            self._lose(ConnectionLost(f"{self.name} has gone{await _last_words(self._stream)}"))
        except frames.FrameError as error:
            self._lose(ConnectionLost(f"{self.name}: {error}{await _last_words(self._stream)}"))
        except Nonsense as error:
            self._lose(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            why = await _last_words(self._stream) or f": {error.__cause__ or error}"
            self._lose(ConnectionLost(f"the connection to {self.name} broke{why}"))
        finally:
            if self._lost is None:
                self._lose(ConnectionLost(f"the connection to {self.name} was closed"))
            self._ended.set()

    async def _frame(self, frame: Frame) -> None:
        if frame.kind == frames.REPLY:
            self._reply(frames.parse_json(frame.meta), bytes(frame.blob))
        elif frame.kind in (frames.PAGES, frames.RING) and self._on_pages is not None:
            await self._on_pages(frame)
        elif frame.kind == frames.EVENT:
            self._event(frames.parse_json(frame.meta))
        else:
            raise frames.FrameError(f"a {frames.KINDS[frame.kind]} frame was not expected")

    def _reply(self, fields: dict[str, Any], blob: bytes) -> None:
        number, error = fields.pop("id", None), fields.get("error")
        if type(number) is not int or number not in self._pending:
            raise frames.FrameError(f"a reply to a request that was not made: {number!r:.100}")
        verb = self._pending[number].verb
        if fields.pop("ok", False) is True:
            self._pending.pop(number)._settle(Reply(fields, blob, f"{self.name}: {verb}"), None)
            return
        if not isinstance(error, dict):
            raise frames.FrameError(f"a refusal without a reason: {fields!r:.200}")
        with making_sense(self.name, f"why {verb!r} failed"):
            told = self._told(verb, error)
        self._pending.pop(number)._settle(None, told)

    def _told(self, verb: str, error: dict[str, Any]) -> MigrateError:
        errno = error.get("errno")
        if error.get("kind") == "refused" and self._refuses:
            return Refused([Problem(*map(str, problem)) for problem in error["problems"]])
        message = str(error.get("message") or (os.strerror(errno) if errno else "no reason was given"))
        return AgentError(self.name, verb, str(error.get("kind")), message, errno)

    def _event(self, fields: dict[str, Any]) -> None:
        if fields.get("event") == "fatal":
            kind, message = str(fields.get("kind")), str(fields.get("message"))
            self._lose(AgentError(self.name, "it gave up", kind, message))
        if self._on_event is not None:
            self._on_event(fields)

    def _lose(self, error: Exception) -> None:
        """The first reason is the one that counts: others follow from it."""
        if self._lost is None:
            self._lost = error
        for pending in self._pending.values():
            pending._settle(None, self._lost)
        self._pending.clear()


@runtime_checkable
class _Ends(Protocol):
    """A stream with a process at its other end."""

    async def wait_ended(self) -> None: ...
    def last_words(self) -> str: ...


async def _last_words(stream: object) -> str:
    """What a stream can say about its end (its process's exit status and standard error). Its output ends an instant
    before the process can be waited for."""
    if not isinstance(stream, _Ends):
        return ""
    with trio.move_on_after(_LAST_WORDS):
        await stream.wait_ended()
    text = stream.last_words()
    return f": {text}" if text else ""


@asynccontextmanager
async def open_agent(
    stream: trio.abc.Stream,
    name: str,
    on_pages: PagesHandler | None = None,
    on_event: EventHandler | None = None,
    refuses: bool = False,
) -> AsyncIterator[Agent]:
    """The agent at the other end of ``stream``, which is closed at the end.

    ``on_pages`` is awaited for each PAGES frame that the agent sends; nothing more is read until it returns.
    An exception that a handler raises ends the block with it. ``name`` is for sentences: "the source agent".
    ``refuses``: it is believed when it says that nothing was changed (Refused). Only one of this host is.
    """
    agent = Agent(stream, name, on_pages, on_event, refuses)
    # Who cancels the block has it undo what it has done, and that takes replies.
    reading = trio.CancelScope(shield=True)

    async def read() -> None:
        with reading:
            await agent._read()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            try:
                yield agent
            finally:
                reading.cancel()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
    finally:
        await trio.aclose_forcefully(stream)


def sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception that matters in a nursery's group: a task that fails makes the others' Cancelled."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        real = [each for each in found.exceptions if not isinstance(each, trio.Cancelled)] or list(found.exceptions)
        if len(real) > 1:
            return found
        found = real[0]
    return found

"""A command that runs over SSH, as a trio stream.

`Session` is what the SSH library calls when something comes or goes, in the event loop that trio-asyncio keeps in a
trio task; `Process` is what trio tasks use. Neither waits in the other's way: data that has come is queued, and
writing to a channel is a plain call.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import trio

_READ_AHEAD = 2 << 20  # bytes kept for a slow reader
_WRITE_AHEAD = 1 << 20  # bytes kept, beyond what the other side has allowed us to send
_STDERR_KEPT = 16 << 10
_STDERR = 1  # SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2


class Channel(Protocol):
    """What is used of asyncssh.SSHClientChannel."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int) -> None: ...


class Process(trio.abc.HalfCloseableStream):
    """A command on the destination: its standard input and output as a trio stream."""

    def __init__(self, session: Session, command: str) -> None:
        self._session, self._command = session, command
        self._sending = self._receiving = self._closed = False

    @property
    def exit_status(self) -> int | None:
        """Its exit status, -1 when a signal ended it, None while it runs."""
        return self._session.exit_status

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of it; waits while too much is on its way already."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._sending = True
        try:
            await self._writable()
            if data:
                self._session.channel.write(data)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Until `send_all` would not wait."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._sending = True
        try:
            await self._writable()
        finally:
            self._sending = False

    async def _writable(self) -> None:
        session = self._session
        await trio.lowlevel.checkpoint()
        while session.full and not (session.ended or self._closed):
            await session.changed.park()
        if self._closed or session.eof_sent:
            raise trio.ClosedResourceError("closed for sending")
        if session.ended or session.channel.is_closing():
            raise trio.BrokenResourceError(self.last_words() or "the command has ended") from session.error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes of its output; none at the end of it."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._closed:
                data = self._session.take(max_bytes)
                if data:
                    return data
                if self._session.error is not None:
                    raise trio.BrokenResourceError("the SSH connection broke") from self._session.error
                if self._session.eof or self._session.ended:
                    return b""
                await self._session.changed.park()
            raise trio.ClosedResourceError("closed")
        finally:
            self._receiving = False

    async def send_eof(self) -> None:
        """Ends its standard input."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError("closed")
        if not self._session.eof_sent and not self._session.ended:
            self._session.channel.write_eof()
        self._session.eof_sent = True

    async def aclose(self) -> None:
        """Ends both directions. What was sent still goes; the command sees the end of its input."""
        if not self._closed:
            self._closed = True
            self._session.discard()
            self._session.channel.close()
            self._session.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    async def wait_ended(self) -> None:
        """Until the command has ended and everything that it said is here."""
        while not self._session.ended:
            await self._session.changed.park()

    async def wait_stderr(self, wanted: bytes) -> bool:
        """Until ``wanted`` comes on its standard error, and is taken out of it; False when the command has ended."""
        while True:
            before, found, after = self._session.stderr.partition(wanted)
            if found:
                self._session.stderr = before + after
                return True
            if self._session.ended:
                return False
            await self._session.changed.park()

    def last_words(self) -> str:
        """How it ended, and the last line of what it wrote to its standard error."""
        status, lines = self.exit_status, self._session.stderr.decode("utf-8", "replace").strip().splitlines()
        words = [] if status is None else [self._session.signal or f"exit status {status}"]
        if self._session.error is not None:
            words.append(str(self._session.error))
        return ", ".join(words + lines[-1:])


class Session:
    """What asyncssh calls when something comes or goes on the channel of a command."""

    channel: Channel

    def __init__(self) -> None:
        self.changed = trio.lowlevel.ParkingLot()
        self.stderr = bytearray()
        self.exit_status: int | None = None
        self.signal = ""
        self.error: Exception | None = None
        self.full = self.eof = self.eof_sent = self.ended = False
        self._data: deque[bytes] = deque()
        self._size = 0
        self._discarding = False

    def connection_made(self, chan: Channel) -> None:
        self.channel = chan
        chan.set_write_buffer_limits(_WRITE_AHEAD)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype == _STDERR:
            self.stderr += data
            del self.stderr[:-_STDERR_KEPT]
        elif not self._discarding:
            self._data.append(data)
            self._size += len(data)
            if self._size > _READ_AHEAD:
                self.channel.pause_reading()
        self.changed.unpark_all()

    def take(self, limit: int | None) -> bytes:
        """What has come, ``limit`` bytes at most."""
        if not self._data:
            return b""
        data = self._data.popleft()
        if limit is not None and len(data) > limit:
            self._data.appendleft(data[limit:])
            data = data[:limit]
        was, self._size = self._size, self._size - len(data)
        if was > _READ_AHEAD // 2 >= self._size:
            self.channel.resume_reading()
        return data

    def discard(self) -> None:
        """Nobody reads any more."""
        self._discarding = True
        self._data.clear()
        self._size = 0

    def session_started(self) -> None:
        pass

    def eof_received(self) -> bool:
        self.eof = True
        self.changed.unpark_all()
        return True  # our direction stays open

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.exit_status, self.signal = -1, f"killed by SIG{signal}"

    def connection_lost(self, exc: Exception | None) -> None:
        self.error, self.ended = exc, True
        self.changed.unpark_all()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.changed.unpark_all()
